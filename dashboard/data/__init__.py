"""What pages read: runs, uploads, machines, running measurements."""

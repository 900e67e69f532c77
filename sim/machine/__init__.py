"""What a machine is: measured curves and rates with their sources, links, composition, changes."""

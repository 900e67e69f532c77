"""The values that the controls of questions offer."""

BATCHES = (1, 2, 3, 4, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
PROMPTS = (
    *(64, 128, 200, 256, 300, 384, 500, 512, 640, 768, 1000, 1024, 1280, 1536, 1792, 2000),
    *(2046, 2500, 3072, 4000, 6144, 8192, 12288, 16384, 24576, 32768, 65536, 98304, 131070),
)
"""2046 and 131070 leave models of 2048 and 131072 positions room for two new tokens."""

STEPS = (1, 2, 4, 8, 16, 32)
N_BATCHES, FIRST_N_BATCHES = (1, 2, 4, 8, 16), 4
GPUS = (1, 2, 4, 8)
RESTORE_PROMPTS = (
    *(512, 1024, 2048, 4096, 8192, 12288, 16384, 24576, 32768, 49152, 65536, 98304, 131072),
)
MAX_TASKS = 60_000
"""Largest question that is planned in the dashboard, in tasks of its graph."""

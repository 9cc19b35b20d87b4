"""An emulated ARM64 board: its disk, and the machine that QEMU makes of it."""

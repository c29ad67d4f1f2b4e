"""The machine that everything runs on: devices and a terminal to show progress on."""

"""Tools of ours, a file each: NAME_tool.py assigns TOOL."""

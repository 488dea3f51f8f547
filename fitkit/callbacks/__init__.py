"""The callbacks that come with fitkit, one idea a file."""

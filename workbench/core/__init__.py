"""What every room stands on: files that replace each other whole."""

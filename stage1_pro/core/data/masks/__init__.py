"""Images and volumes with masks: how they are found, read, checked and fed; with the extra `seg`."""

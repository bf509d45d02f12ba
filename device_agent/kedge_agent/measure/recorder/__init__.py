"""The flight recorder: what the device did each second, kept in files of bounded size that outlive the daemon."""

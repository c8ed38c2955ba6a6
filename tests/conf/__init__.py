"""The command line and the files under conf/."""

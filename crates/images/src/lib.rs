//! Getting an operating system into a volume.

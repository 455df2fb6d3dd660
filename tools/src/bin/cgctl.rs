//! `cgctl`: put a command under memory enforcement, and look at what was done.

fn main() {}

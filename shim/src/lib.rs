//! The cgshim engine.

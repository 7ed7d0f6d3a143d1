//! Image layers: tar in, tree out.
#![forbid(unsafe_code)]

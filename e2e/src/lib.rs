//! Black-box tests over the CRI socket.
#![forbid(unsafe_code)]

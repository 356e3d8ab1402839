//! The world around the core: guests, memory, clusters and the checkers that watch them.

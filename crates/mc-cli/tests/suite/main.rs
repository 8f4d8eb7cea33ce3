//! The command line as people and scripts meet it: the real binary, real files, one directory per test.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by a panic")]

mod bad_input;
mod bench;
mod embed;
mod finetune;
#[cfg(unix)]
mod interrupted;
mod main_job;
mod place;
mod reading;
mod search;

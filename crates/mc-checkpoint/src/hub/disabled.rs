//! [`fetch`] of a build without the feature `hub`: says so.

use super::{HubConfig, Progress};
use crate::{Error, Result};
use std::path::PathBuf;

pub(super) fn fetch(_: &HubConfig, repo: &str, _: &str, _: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
    Err(Error::Hub {
        what: format!("{repo}: no directory here, and this build cannot download from the hub"),
        hint: Some("build with the feature `hub`, or pass a directory that holds the model".into()),
    })
}

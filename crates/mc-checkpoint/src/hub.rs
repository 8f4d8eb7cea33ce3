//! Models from the Hugging Face hub, in the cache that `huggingface_hub` uses. Knows names of files, not what is in them.
//!
//! Built without the feature `hub`, [`fetch`] only says so.

#[cfg(feature = "hub")]
mod http;
#[cfg(not(feature = "hub"))]
#[path = "hub/disabled.rs"]
mod imp;
#[cfg(feature = "hub")]
#[path = "hub/enabled.rs"]
mod imp;

use crate::{Error, Result};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// Where the hub is and where its files are kept.
#[derive(Clone, PartialEq, Eq)]
pub struct HubConfig {
    /// The hub's address, without a slash at the end.
    pub endpoint: String,
    /// The directory of the cache, with one `models--owner--name` per repository.
    pub cache_dir: PathBuf,
    /// What proves who is asking; sent to the endpoint and nobody else.
    pub token: Option<String>,
    /// Whether to use only what is in the cache.
    pub offline: bool,
}

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file's name in the repository.
    pub file: &'a str,
    /// Bytes that are there, those of an earlier try included.
    pub bytes: u64,
    /// All bytes of the file, if the hub said.
    pub total: Option<u64>,
}

/// The local directory that holds the files of a model or adapter on the hub, downloaded where they are not yet there.
///
/// `repo` is `owner/name`; `revision` a branch, tag or commit, `main` if `None`. Fetched are configuration, tokenizer,
/// chat templates and safetensors (one file or all shards), in the folders that `modules.json` names too. An
/// interrupted download is continued by the next call. If all is in the cache, one request asks whether the revision
/// has moved, and none if `offline` is set; if the hub cannot be reached, a complete copy in the cache is used.
///
/// # Errors
/// If the repository or a file it needs is not there, the hub cannot be reached and the cache has no complete copy,
/// or this build has no feature `hub`.
///
/// ```no_run
/// use mc_checkpoint::{ModelDir, hub::{HubConfig, fetch}};
/// let id = "HuggingFaceTB/SmolLM2-135M";
/// let path = fetch(&HubConfig::from_env(), id, None, &mut |p| println!("{}: {} bytes", p.file, p.bytes))?;
/// let dir = ModelDir::open(path)?.with_name(id);
/// # Ok::<(), mc_checkpoint::Error>(())
/// ```
pub fn fetch(
    config: &HubConfig,
    repo: &str,
    revision: Option<&str>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf> {
    let revision = revision.unwrap_or("main");
    if !is_repo_id(repo) {
        return Err(Error::Hub {
            what: format!("`{repo}` is not the id of a repository"),
            hint: Some("an id is owner/name, of letters, digits, `-`, `_` and `.`".into()),
        });
    }
    if !crate::model_dir::stays_inside(revision) || !revision.bytes().all(|b| is_plain(b) || b"/+".contains(&b)) {
        return Err(Error::Hub { what: format!("{repo}: `{revision}` is not a revision"), hint: None });
    }
    imp::fetch(config, repo, revision, progress)
}

/// Whether `text` has the form of a repository's id, `owner/name` or `name`, and so is no path with more parts.
pub fn is_repo_id(text: &str) -> bool {
    let part = |p: &str| {
        (1..=96).contains(&p.len()) && p.bytes().all(is_plain) && !p.starts_with(['.', '-']) && !p.ends_with(['.', '-'])
    };
    text.split('/').count() <= 2 && text.split('/').all(part) && !text.contains("--") && !text.contains("..")
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
}

impl HubConfig {
    /// As the environment says, like `huggingface_hub`: `HF_ENDPOINT`; `HF_HUB_CACHE`, `HF_HOME` or `XDG_CACHE_HOME`; `HF_TOKEN`,
    /// `HUGGING_FACE_HUB_TOKEN`, `HF_TOKEN_PATH` or the token file in `HF_HOME`, unless `HF_HUB_DISABLE_IMPLICIT_TOKEN`;
    /// `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// [`HubConfig::from_env`] over any environment: `var` gives the value of a variable.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name| var(name).filter(|v| !v.trim().is_empty());
        let yes = |v: String| matches!(v.to_lowercase().as_str(), "1" | "true" | "yes" | "on");
        let person = || std::env::home_dir().unwrap_or_default();
        // A `~` that no shell has replaced, as in a file of settings.
        let path = |name| {
            let given = PathBuf::from(set(name)?);
            Some(match given.strip_prefix("~") {
                Ok(rest) => person().join(rest),
                Err(_) => given,
            })
        };
        let home = path("HF_HOME")
            .unwrap_or_else(|| path("XDG_CACHE_HOME").unwrap_or_else(|| person().join(".cache")).join("huggingface"));
        let file = |path: &Path| fs::read_to_string(path).ok();
        let token_path = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let asked_not_to = set("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(yes);
        let token = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN")).or_else(|| file(&token_path));
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Self {
            endpoint: endpoint.trim_end_matches('/').into(),
            cache_dir: path("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")),
            token: token.map(|t| t.trim().to_string()).filter(|t| !t.is_empty() && !asked_not_to),
            offline: set("HF_HUB_OFFLINE").or_else(|| set("TRANSFORMERS_OFFLINE")).is_some_and(yes),
        }
    }
}

impl fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubConfig")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .finish()
    }
}

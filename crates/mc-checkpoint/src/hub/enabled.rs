//! [`fetch`] with the feature `hub`: which files, and where the cache keeps them.
//!
//! `models--owner--name/` holds `blobs/<etag>`, `snapshots/<commit>/<file>` (links to blobs) and `refs/<revision>`
//! (the commit), as `huggingface_hub` lays them out, so either finds what the other fetched. The crate hf-hub names
//! and reads what its public interface covers; what is written is written here.

use super::{
    HubConfig, Progress,
    http::{Client, Failure, Reply},
};
use crate::{
    Error, Result,
    model_dir::{INDEX, MODULES, WEIGHTS, stays_inside},
    peft::{ADAPTER_CONFIG, ADAPTER_WEIGHTS},
    read_limited,
    safetensors::shards,
    write_atomic,
};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
};

/// Fetched where the repository has them.
const SMALL_FILES: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    MODULES,
    "config_sentence_transformers.json",
    ADAPTER_CONFIG,
];

/// The answer about a revision may have 16 MiB, its list of files included.
const MAX_ANSWER: u64 = 16 << 20;

pub(super) fn fetch(
    config: &HubConfig,
    repo: &str,
    revision: &str,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf> {
    let model = Repo::with_revision(repo.into(), RepoType::Model, revision.into());
    let dir = config.cache_dir.join(model.folder_name());
    let cache = Cache::new(config.cache_dir.clone()).repo(model);
    if config.offline {
        return complete(&cache, revision).ok_or_else(|| Error::Hub {
            what: format!("{repo}: no complete copy of revision `{revision}` in {}", config.cache_dir.display()),
            hint: Some("HF_HUB_OFFLINE is set; unset it to download".into()),
        });
    }
    let client = Client::new(config);
    let asked = ask(&client, repo, revision);
    // Not if there is no such model or revision any more.
    if let (Err(Failure::Unreachable(error) | Failure::Refused(error)), Some(snapshot)) =
        (&asked, complete(&cache, revision))
    {
        tracing::warn!("{error}; using the copy in the cache");
        return Ok(snapshot);
    }
    let Revision { sha: commit, siblings } = asked?;
    let files: Vec<String> = siblings.into_iter().map(|f| f.rfilename).filter(|f| stays_inside(f)).collect();
    let snapshot = cache.pointer_path(&commit);
    let mut download = Download { client, config, repo, dir: &dir, commit: &commit, snapshot: &snapshot, progress };
    for file in files.iter().filter(|file| is_small(file)) {
        download.file(file, true)?;
    }
    let (own, others) = folders(&snapshot);
    for folder in others {
        download.folder(&folder, &files)?;
    }
    // The model's own weights come last: a snapshot that has them all has the rest as well.
    if !download.folder(&own, &files)? {
        if !files.iter().any(|file| file == ADAPTER_WEIGHTS) {
            let hint = "only weights in safetensors can be used; look for a converted copy of the model".to_string();
            return Err(Error::Hub { what: format!("{repo}: no model.safetensors"), hint: Some(hint) });
        }
        download.file(ADAPTER_WEIGHTS, false)?;
    }
    if commit != revision {
        // Not by `CacheRepo::create_ref`, which leaves an empty file if it is interrupted.
        let path = dir.join("refs").join(revision);
        // Who may only read a cache that has everything needs no more.
        if fs::read_to_string(&path).is_ok_and(|known| known == commit) {
            return Ok(snapshot);
        }
        make_dir_of(&path)?;
        write_atomic(path, |file| file.write_all(commit.as_bytes()))?;
    }
    Ok(snapshot)
}

/// What the hub says of a revision.
#[derive(serde::Deserialize)]
struct Revision {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(serde::Deserialize)]
struct Sibling {
    rfilename: String,
}

fn ask(client: &Client<'_>, repo: &str, revision: &str) -> Result<Revision, Failure> {
    let reply = client.get(&format!("/api/models/{repo}/revision/{}", encode(revision, "")), 0, repo)?;
    let answer = serde_json::from_reader::<_, Revision>(reply.body.take(MAX_ANSWER));
    let wrong = |what: String| Failure::Refused(Error::Hub { what, hint: Some("check HF_ENDPOINT".into()) });
    let answer = answer.map_err(|e| wrong(format!("{repo}: the hub's answer cannot be read: {e}")))?;
    if !(is_plain_name(&answer.sha) && answer.sha.bytes().all(|b| b.is_ascii_hexdigit())) {
        return Err(wrong(format!("{repo}: the hub's answer names the commit `{}`", answer.sha)));
    }
    Ok(answer)
}

fn is_small(file: &str) -> bool {
    match file.split_once('/') {
        // Of the file of lengths there are several: `sentence_roberta_config.json`.
        None => SMALL_FILES.contains(&file) || file.starts_with("sentence_") && file.ends_with("_config.json"),
        Some((folder, name)) => {
            folder == "additional_chat_templates" && Path::new(name).extension().is_some_and(|e| e == "jinja")
        }
    }
}

/// Where in a snapshot the model is, and where the modules that follow it are, as `modules.json` says: folders with a slash
/// at the end, or nothing for the snapshot itself.
fn folders(snapshot: &Path) -> (String, Vec<String>) {
    #[derive(serde::Deserialize)]
    struct Module {
        #[serde(default)]
        path: String,
    }
    let modules = read_limited(snapshot.join(MODULES)).ok().flatten();
    let modules: Option<Vec<Module>> = modules.and_then(|text| serde_json::from_slice(&text).ok());
    let folder = |module: Module| {
        let parts = module.path.split('/').filter(|part| !matches!(*part, "" | "."));
        parts.fold(String::new(), |folder, part| folder + part + "/")
    };
    // One that leads out of the snapshot has no file that the hub may list.
    let mut folders = modules.into_iter().flatten().map(folder);
    (folders.next().unwrap_or_default(), folders.collect())
}

/// The snapshot of a revision, a branch or a commit, if its weights are all there.
fn complete(cache: &CacheRepo, revision: &str) -> Option<PathBuf> {
    let found = ["config.json", MODULES, ADAPTER_CONFIG].into_iter().find_map(|file| cache.get(file));
    let commit = match &found {
        Some(file) => file.parent()?.file_name()?.to_str()?,
        None => revision,
    };
    // What stands in a ref is a name here, never a path: other programs write refs as well.
    let snapshot = cache.pointer_path(Some(commit).filter(|c| is_plain_name(c))?);
    let model = snapshot.join(folders(&snapshot).0);
    let has = |name: &str| model.join(name).is_file();
    let all = if has("config.json") {
        has(WEIGHTS) || {
            let text = read_limited(model.join(INDEX)).ok()??;
            shards(INDEX, &text).ok()?.keys().all(|shard| has(shard))
        }
    } else {
        has(ADAPTER_CONFIG) && has(ADAPTER_WEIGHTS)
    };
    all.then_some(snapshot)
}

struct Download<'a> {
    client: Client<'a>,
    config: &'a HubConfig,
    repo: &'a str,
    /// The repository's directory in the cache.
    dir: &'a Path,
    commit: &'a str,
    snapshot: &'a Path,
    progress: &'a mut dyn FnMut(Progress<'_>),
}

impl Download<'_> {
    /// What a folder of the commit holds of a model or of a part of one; whether weights are among it.
    fn folder(&mut self, folder: &str, files: &[String]) -> Result<bool> {
        for file in files.iter().filter(|file| file.strip_prefix(folder).is_some_and(is_small)) {
            self.file(file, true)?;
        }
        let [weights, index] = [WEIGHTS, INDEX].map(|name| format!("{folder}{name}"));
        if files.contains(&weights) {
            self.file(&weights, false)?;
        } else if files.contains(&index) {
            self.file(&index, false)?;
            let path = self.snapshot.join(&index);
            let text = read_limited(&path)?.unwrap_or_default();
            for shard in shards(&path.display().to_string(), &text)?.keys() {
                self.file(&format!("{folder}{shard}"), false)?;
            }
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Makes sure that a file of the commit is in the snapshot, an optional one if the hub has it.
    fn file(&mut self, name: &str, is_optional: bool) -> Result<()> {
        let link = self.snapshot.join(name);
        if link.is_file() {
            return Ok(());
        }
        let what = format!("{}: {name}", self.repo);
        let path = format!("/{}/resolve/{}/{}", self.repo, self.commit, encode(name, "/"));
        let reply = match self.client.get(&path, 0, &what) {
            // Mirrors do not have all that they list.
            Err(Failure::NotFound(error)) if is_optional => {
                tracing::debug!("{error}; going on without it");
                return Ok(());
            }
            other => other?,
        };
        let Some(etag) = reply.etag.clone().filter(|e| is_plain_name(e)) else {
            let what = format!("{what}: the hub named its content `{}`", reply.etag.unwrap_or_default());
            return Err(Error::Hub { what, hint: Some("check HF_ENDPOINT".into()) });
        };
        let blob = self.dir.join("blobs").join(&etag);
        make_dir_of(&blob)?;
        // Held until the end: another process that wants the same file waits here and then finds it.
        let lock = self.config.cache_dir.join(".locks").join(self.dir.file_name().unwrap_or_default());
        let lock = lock.join(format!("{etag}.lock"));
        make_dir_of(&lock)?;
        let held = File::create(&lock).and_then(|file| file.lock().map(|()| file)).map_err(Error::io(&lock))?;
        if !blob.is_file() {
            // Not the name that huggingface_hub uses: some of its downloaders leave holes in what they have not finished.
            let part = blob.with_file_name(format!("{etag}.mc-incomplete"));
            let reply = self.resume(&path, &part, reply, &what)?;
            let is_sha256 = reply.is_sha256;
            self.receive(name, &part, reply, &what)?;
            if is_sha256 && sha256(&part)? != etag.to_lowercase() {
                fs::remove_file(&part).map_err(Error::io(&part))?;
                let hint = Some("run it again; what came is thrown away".into());
                return Err(Error::Hub { what: format!("{what}: the content does not have its checksum"), hint });
            }
            fs::rename(&part, &blob).map_err(Error::io(&blob))?;
        }
        drop(held);
        make_dir_of(&link)?;
        put_link(&blob, &link, name.split('/').count() + 1).map_err(Error::io(&link))
    }

    /// If an earlier try left the first part of the file, the rest of it; else `whole`.
    fn resume(&self, path: &str, part: &Path, whole: Reply, what: &str) -> Result<Reply> {
        let have = fs::metadata(part).map_or(0, |m| m.len());
        if have == 0 {
            return Ok(whole);
        }
        let rest = self.client.get(path, have, what)?;
        Ok(if rest.status == 206 && rest.start == have && rest.etag == whole.etag { rest } else { whole })
    }

    /// Appends what comes to `part`, until the file is whole and on the disk.
    fn receive(&mut self, name: &str, part: &Path, mut reply: Reply, what: &str) -> Result<()> {
        let interrupted = |why: String| Error::Unreachable {
            what: format!("{what}: download interrupted: {why}"),
            hint: "run it again; it goes on where it stopped".into(),
        };
        let open = File::options().create(true).append(true).open(part).map_err(Error::io(part));
        let mut file = open?;
        file.set_len(reply.start).map_err(Error::io(part))?;
        let mut bytes = reply.start;
        let mut buffer = vec![0; 1 << 18];
        loop {
            (self.progress)(Progress { file: name, bytes, total: reply.total });
            let n = reply.body.read(&mut buffer).map_err(|e| interrupted(e.to_string()))?;
            if n == 0 {
                break;
            }
            file.write_all(&buffer[..n]).map_err(Error::io(part))?;
            bytes += n as u64;
        }
        match reply.total {
            Some(total) if bytes < total => return Err(interrupted(format!("{bytes} bytes of {total}"))),
            Some(total) if bytes > total => {
                // Not the beginning of anything: the next try must not go on from here.
                fs::remove_file(part).map_err(Error::io(part))?;
                return Err(Error::Hub { what: format!("{what}: {bytes} bytes, expected {total}"), hint: None });
            }
            _ => {}
        }
        file.sync_all().map_err(Error::io(part))
    }
}

fn sha256(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    File::open(path).and_then(|mut file| std::io::copy(&mut file, &mut hash)).map_err(Error::io(path))?;
    Ok(format!("{:x}", hash.finalize()))
}

fn make_dir_of(path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(path);
    fs::create_dir_all(dir).map_err(Error::io(dir))
}

/// `up` is how many directories lie between the link and the repository's directory.
#[cfg(unix)]
fn put_link(blob: &Path, link: &Path, up: usize) -> std::io::Result<()> {
    let target = PathBuf::from("../".repeat(up)).join("blobs").join(blob.file_name().unwrap_or_default());
    match std::os::unix::fs::symlink(&target, link) {
        // Left without its blob, or made by another process meanwhile.
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && !link.exists() => {
            fs::remove_file(link)?;
            std::os::unix::fs::symlink(&target, link)
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

#[cfg(not(unix))]
fn put_link(blob: &Path, link: &Path, _: usize) -> std::io::Result<()> {
    fs::hard_link(blob, link).or_else(|_| fs::copy(blob, link).map(|_| ()))
}

/// Names that the hub gives and that become file names.
fn is_plain_name(name: &str) -> bool {
    (1..=128).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(super::is_plain)
}

/// Percent-encodes all but letters, digits, `-`, `_`, `.` and what is in `keep`.
fn encode(text: &str, keep: &str) -> String {
    let plain = |b| super::is_plain(b) || keep.as_bytes().contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

//! Downloads from a hub that this test serves on the loopback device: what is fetched, kept, continued and refused.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by a panic")]

use mc_checkpoint::{
    ModelDir,
    hub::{HubConfig, fetch, is_repo_id},
};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex},
};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server knows and has seen.
#[derive(Default)]
struct Hub {
    files: BTreeMap<String, Vec<u8>>,
    /// Listed by the API, but not there.
    ghosts: Vec<String>,
    /// Files served from elsewhere, as large ones are.
    linked: Vec<String>,
    /// Where `elsewhere` is.
    storage: String,
    /// Bodies end after so many bytes, once per file.
    cut: BTreeMap<String, usize>,
    token: Option<String>,
    commit: String,
    etag: Option<String>,
    corrupt: bool,
    /// Request lines with the token and the range that came with them.
    seen: Vec<(String, Option<String>, Option<String>)>,
}

struct Server {
    hub: Arc<Mutex<Hub>>,
    endpoint: String,
}

fn serve(hub: Hub) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let hub = Arc::new(Mutex::new(hub));
    let shared = hub.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let hub = shared.clone();
            std::thread::spawn(move || answer(stream, &hub));
        }
    });
    Server { hub, endpoint }
}

fn answer(mut stream: TcpStream, hub: &Mutex<Hub>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut lines = std::iter::from_fn(|| {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        Some(line.trim().to_string()).filter(|l| !l.is_empty())
    });
    let Some(request) = lines.next() else { return };
    let headers: BTreeMap<_, _> =
        lines.filter_map(|l| l.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_string()))).collect();
    let path = request.split(' ').nth(1).unwrap().replace("%20", " ");
    let mut hub = hub.lock().unwrap();
    let token = headers.get("authorization").cloned();
    hub.seen.push((path.clone(), token.clone(), headers.get("range").cloned()));
    let mut respond = |status: &str, more: &str, body: &[u8], length: usize| {
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{more}\r\n");
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    };
    let stored = path.strip_prefix("/storage/");
    if stored.is_none() && hub.token.as_ref().is_some_and(|t| token != Some(format!("Bearer {t}"))) {
        return respond("401 Unauthorized", "", b"", 0);
    }
    if let Some(rest) = path.strip_prefix("/api/models/") {
        if rest != "org/tiny/revision/main" && rest != "org/tiny/revision/refs%2Fpr%2F1" {
            return respond("404 Not Found", "", b"", 0);
        }
        let names = hub.files.keys().chain(&hub.ghosts);
        let siblings: Vec<_> = names.map(|f| serde_json::json!({"rfilename": f})).collect();
        let body = serde_json::json!({"sha": hub.commit, "siblings": siblings, "private": false}).to_string();
        return respond("200 OK", "", body.as_bytes(), body.len());
    }
    let prefix = format!("/org/tiny/resolve/{}/", hub.commit);
    let name = stored.or_else(|| path.strip_prefix(&prefix)).unwrap_or_default().to_string();
    let Some(mut content) = hub.files.get(&name).cloned() else { return respond("404 Not Found", "", b"", 0) };
    let sha = format!("{:x}", Sha256::digest(&content));
    let etag = hub.etag.clone().unwrap_or_else(|| sha[..40].to_string());
    let more = if stored.is_some() {
        "etag: \"of-the-storage\"\r\n".to_string()
    } else if hub.linked.contains(&name) {
        let more = format!(
            "x-linked-etag: \"{sha}\"\r\nx-linked-size: {}\r\nx-repo-commit: {COMMIT}\r\nlocation: {}/storage/{name}\r\n",
            content.len(),
            hub.storage
        );
        return respond("302 Found", &more, b"", 0);
    } else {
        format!("etag: W/\"{etag}\"\r\nx-repo-commit: {COMMIT}\r\n")
    };
    if hub.corrupt {
        content[0] ^= 1;
    }
    let start = headers.get("range").map(|r| r.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap());
    let (whole, start): (usize, usize) = (content.len(), start.unwrap_or(0));
    let end = hub.cut.remove(&name).unwrap_or(whole);
    let body = &content[start.min(end)..end];
    if start > 0 {
        let more = format!("{more}content-range: bytes {start}-{}/{whole}\r\n", whole - 1);
        respond("206 Partial Content", &more, body, whole - start);
    } else {
        respond("200 OK", &more, body, whole);
    }
}

fn tensors(seed: u64) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let tensor = mc_testkit::random(seed, (40, 50), candle_core::DType::F32);
    mc_checkpoint::save_safetensors(&path, &[(format!("w{seed}"), tensor)].into(), None).unwrap();
    fs::read(path).unwrap()
}

fn tiny() -> Hub {
    let files = [
        ("config.json", br#"{"model_type": "qwen2"}"#.to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("additional_chat_templates/tool use.jinja", b"{{ tools }}".to_vec()),
        ("modules.json", br#"[{"path": ""}, {"path": "1_Pooling"}]"#.to_vec()),
        ("1_Pooling/config.json", b"{\"pooling_mode\": \"mean\"}".to_vec()),
        ("README.md", b"# not wanted".to_vec()),
        ("pytorch_model.bin", vec![0; 10]),
        ("model.safetensors", tensors(1)),
    ];
    Hub { files: files.map(|(n, c)| (n.to_string(), c)).into(), commit: COMMIT.into(), ..Hub::default() }
}

fn sharded(shards: [&str; 2]) -> Hub {
    let mut hub = tiny();
    hub.files.remove("model.safetensors");
    let index = serde_json::json!({"weight_map": {"w1": shards[0], "w2": shards[1]}});
    hub.files.insert("model.safetensors.index.json".into(), index.to_string().into_bytes());
    hub.files.insert(shards[0].into(), tensors(1));
    hub.files.insert(shards[1].into(), tensors(2));
    hub
}

fn config(server: &Server, cache: &TempDir) -> HubConfig {
    HubConfig {
        endpoint: server.endpoint.clone(),
        cache_dir: cache.path().join("hub"),
        token: Some("secret".into()),
        offline: false,
    }
}

fn get(config: &HubConfig) -> Result<PathBuf, mc_checkpoint::Error> {
    fetch(config, "org/tiny", None, &mut |_| {})
}

#[test]
fn a_snapshot_is_what_huggingface_hub_would_have_made() {
    let (server, cache) = (serve(tiny()), tempfile::tempdir().unwrap());
    let config = config(&server, &cache);
    let mut last = BTreeMap::new();
    let path = fetch(&config, "org/tiny", None, &mut |p| {
        assert!(p.bytes >= last.get(p.file).copied().unwrap_or(0));
        last.insert(p.file.to_string(), p.bytes);
        assert_eq!(p.total, Some(tiny().files[p.file].len() as u64));
    })
    .unwrap();
    let repo = cache.path().join("hub/models--org--tiny");
    assert_eq!(path, repo.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let hub = tiny();
    let unwanted = ["README.md", "pytorch_model.bin"];
    assert_eq!(last.len(), hub.files.len() - unwanted.len());
    for (name, content) in &hub.files {
        let there = fs::read(path.join(name)).ok();
        assert_eq!(there.as_ref(), (!unwanted.contains(&name.as_str())).then_some(content), "{name}");
    }
    #[cfg(unix)]
    for (name, target) in [("config.json", "../../blobs/"), ("1_Pooling/config.json", "../../../blobs/")] {
        let link = fs::read_link(path.join(name)).unwrap();
        assert!(link.to_str().unwrap().starts_with(target), "{}", link.display());
        let blob = fs::canonicalize(path.join(name)).unwrap();
        assert!(blob.starts_with(fs::canonicalize(repo.join("blobs")).unwrap()));
    }
    let dir = ModelDir::open(&path).unwrap().with_name("org/tiny");
    assert_eq!((dir.name(), dir.model_type().unwrap().as_str()), ("org/tiny", "qwen2"));
    assert_eq!(dir.weights().unwrap().names(), ["w1"]);
    assert!(server.hub.lock().unwrap().seen.iter().all(|(_, token, _)| token.as_deref() == Some("Bearer secret")));
}

#[test]
fn a_second_fetch_asks_once_and_offline_never() {
    let (server, cache) = (serve(tiny()), tempfile::tempdir().unwrap());
    let mut config = config(&server, &cache);
    let first = get(&config).unwrap();
    server.hub.lock().unwrap().seen.clear();
    assert_eq!(get(&config).unwrap(), first);
    assert_eq!(server.hub.lock().unwrap().seen.len(), 1);
    config.offline = true;
    assert_eq!(get(&config).unwrap(), first);
    assert_eq!(fetch(&config, "org/tiny", Some(COMMIT), &mut |_| {}).unwrap(), first);
    assert_eq!(server.hub.lock().unwrap().seen.len(), 1);
    // A hub that cannot be reached is no reason to fail if all is there.
    config.offline = false;
    config.endpoint = "http://127.0.0.1:9".into();
    assert_eq!(get(&config).unwrap(), first);
    // Nor one that refuses, as it does who asks too often.
    config.endpoint = server.endpoint.clone();
    server.hub.lock().unwrap().token = Some("other".into());
    assert_eq!(get(&config).unwrap(), first);
    // But a revision that is gone is gone.
    server.hub.lock().unwrap().token = None;
    assert!(fetch(&config, "org/tiny", Some("gone"), &mut |_| {}).unwrap_err().to_string().contains("404"));
    // A cache that lost its weights is not complete.
    config.offline = true;
    fs::remove_file(first.join("model.safetensors")).unwrap();
    let error = get(&config).unwrap_err();
    assert!(error.to_string().starts_with("org/tiny: no complete copy of revision `main` in "), "{error}");
    assert!(error.hint().unwrap().contains("HF_HUB_OFFLINE"));
}

/// As on a machine whose cache others fill.
#[cfg(unix)]
#[test]
fn a_complete_cache_need_not_be_written_to() {
    use std::os::unix::fs::MetadataExt;
    let (server, cache) = (serve(tiny()), tempfile::tempdir().unwrap());
    let config = config(&server, &cache);
    get(&config).unwrap();
    // Who is root may write anyway; a file that is written anew is another one.
    let id = || fs::metadata(config.cache_dir.join("models--org--tiny/refs/main")).unwrap().ino();
    let before = id();
    get(&config).unwrap();
    assert_eq!(id(), before);
}

#[test]
fn a_ref_does_not_lead_out_of_the_snapshots() {
    let (server, cache) = (serve(tiny()), tempfile::tempdir().unwrap());
    let config = HubConfig { offline: true, ..config(&server, &cache) };
    let repo = config.cache_dir.join("models--org--tiny");
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::create_dir_all(repo.join("snapshots").join(COMMIT)).unwrap();
    for place in [cache.path().join("evil"), repo.clone()] {
        fs::create_dir_all(&place).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::write(place.join(name), &tiny().files[name]).unwrap();
        }
    }
    let absolute = cache.path().join("evil");
    for target in ["../../../evil", absolute.to_str().unwrap(), "..", "", "."] {
        fs::write(repo.join("refs/main"), target).unwrap();
        assert!(get(&config).is_err(), "{target}");
    }
}

#[test]
fn a_moved_branch_gets_a_second_snapshot() {
    let (server, cache) = (serve(tiny()), tempfile::tempdir().unwrap());
    let config = config(&server, &cache);
    let first = get(&config).unwrap();
    {
        let mut hub = server.hub.lock().unwrap();
        hub.commit = "f".repeat(40);
        hub.files.insert("config.json".into(), br#"{"model_type": "llama"}"#.to_vec());
        hub.seen.clear();
    }
    let second = get(&config).unwrap();
    assert_ne!(first, second);
    assert_eq!(ModelDir::open(&first).unwrap().model_type().unwrap(), "qwen2");
    assert_eq!(ModelDir::open(&second).unwrap().model_type().unwrap(), "llama");
    let pr = fetch(&config, "org/tiny", Some("refs/pr/1"), &mut |_| {}).unwrap();
    assert_eq!(pr, second);
    assert!(cache.path().join("hub/models--org--tiny/refs/refs/pr/1").is_file());
}

#[test]
fn an_interrupted_download_is_continued() {
    for linked in [false, true] {
        let storage = serve(tiny());
        let mut hub = tiny();
        hub.storage.clone_from(&storage.endpoint);
        hub.linked = if linked { vec!["model.safetensors".into()] } else { vec![] };
        let (server, cache) = (serve(hub), tempfile::tempdir().unwrap());
        let config = config(&server, &cache);
        let source = if linked { &storage } else { &server };
        source.hub.lock().unwrap().cut.insert("model.safetensors".into(), 3000);
        let error = get(&config).unwrap_err();
        assert!(error.to_string().starts_with("org/tiny: model.safetensors: download interrupted: "), "{error}");
        assert!(error.hint().unwrap().contains("goes on"));
        let repo = cache.path().join("hub/models--org--tiny");
        let snapshot = repo.join("snapshots").join(COMMIT);
        assert!(fs::symlink_metadata(snapshot.join("model.safetensors")).is_err(), "no half file");
        assert!(!repo.join("refs/main").exists());
        assert!(get(&HubConfig { offline: true, ..config.clone() }).is_err());

        server.hub.lock().unwrap().seen.clear();
        get(&config).unwrap();
        assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), tiny().files["model.safetensors"]);
        let ranges =
            |s: &Server| s.hub.lock().unwrap().seen.iter().filter_map(|(_, _, r)| r.clone()).collect::<Vec<_>>();
        assert_eq!(ranges(source), ["bytes=3000-"]);
        // The token is for the hub alone; the storage has another origin.
        assert!(storage.hub.lock().unwrap().seen.iter().all(|(_, token, _)| token.is_none()));
        let blobs = fs::read_dir(repo.join("blobs")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        assert!(blobs.into_iter().all(|name| !name.contains("incomplete")));
    }
}

#[test]
fn content_is_held_against_its_checksum() {
    let storage = serve(Hub { corrupt: true, ..tiny() });
    let hub = Hub { storage: storage.endpoint.clone(), linked: vec!["model.safetensors".into()], ..tiny() };
    let (server, cache) = (serve(hub), tempfile::tempdir().unwrap());
    let config = config(&server, &cache);
    let error = get(&config).unwrap_err().to_string();
    assert_eq!(error, "org/tiny: model.safetensors: the content does not have its checksum");
    storage.hub.lock().unwrap().corrupt = false;
    let path = get(&config).unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), tiny().files["model.safetensors"]);
}

#[test]
fn all_shards_are_fetched() {
    let (server, cache) = (serve(sharded(["a.safetensors", "b.safetensors"])), tempfile::tempdir().unwrap());
    let mut config = config(&server, &cache);
    let path = get(&config).unwrap();
    assert_eq!(ModelDir::open(&path).unwrap().weights().unwrap().names(), ["w1", "w2"]);
    config.offline = true;
    assert_eq!(get(&config).unwrap(), path);
    fs::remove_file(path.join("b.safetensors")).unwrap();
    assert!(get(&config).is_err());
}

/// A model of parts, each in a folder with what it needs, its weights in one file or in shards.
#[test]
fn the_folders_of_modules_are_fetched() {
    for own in ["", "0_Transformer/", "parts/0/"] {
        let index = br#"{"weight_map": {"w1": "a.safetensors", "w2": "b.safetensors"}}"#.to_vec();
        let modules = format!(
            r#"[{{"path": "{own}"}}, {{"path": "./1_Pooling"}}, {{"path": "2_Dense"}}, {{"path": "Dense two/"}},
                {{"path": "../outside"}}, {{"path": "/etc"}}, {{"path": "9_Normalize"}}]"#
        );
        let own_files = [
            ("config.json", b"{}".to_vec()),
            ("tokenizer.json", b"{}".to_vec()),
            ("tokenizer_config.json", b"{}".to_vec()),
            ("sentence_roberta_config.json", b"{}".to_vec()),
            ("sentence_xlm-roberta_config.json", b"{}".to_vec()),
            ("model.safetensors.index.json", index.clone()),
            ("a.safetensors", tensors(1)),
            ("b.safetensors", tensors(2)),
        ];
        let mut files: BTreeMap<String, Vec<u8>> =
            own_files.into_iter().map(|(name, content)| (format!("{own}{name}"), content)).collect();
        let parts = [
            ("modules.json", modules.clone().into_bytes()),
            ("1_Pooling/config.json", b"{}".to_vec()),
            ("2_Dense/config.json", b"{}".to_vec()),
            ("2_Dense/model.safetensors", tensors(3)),
            ("Dense two/config.json", b"{}".to_vec()),
            ("Dense two/model.safetensors.index.json", index),
            ("Dense two/a.safetensors", tensors(4)),
            ("Dense two/b.safetensors", tensors(5)),
        ];
        files.extend(parts.map(|(name, content)| (name.to_string(), content)));
        let wanted = files.clone();
        let unwanted = ["onnx/model.safetensors", "3_Other/config.json", "2_Dense/pytorch_model.bin", "sentence.json"];
        files.extend(unwanted.map(|name| (name.to_string(), b"{}".to_vec())));
        // Listed only; without it the model is whole.
        let hub = Hub { ghosts: vec!["2_Dense/tokenizer.json".into()], files, ..tiny() };
        let (server, cache) = (serve(hub), tempfile::tempdir().unwrap());
        let mut config = config(&server, &cache);
        let mut last = String::new();
        let path = fetch(&config, "org/tiny", None, &mut |p| last = p.file.into()).unwrap();
        assert_eq!(last, format!("{own}b.safetensors"), "what tells a whole snapshot comes last");
        assert!(unwanted.iter().all(|name| !path.join(name).exists()));
        for (name, content) in &wanted {
            assert_eq!(&fs::read(path.join(name)).unwrap(), content, "{name}");
        }
        assert_eq!(ModelDir::open(path.join(own)).unwrap().weights().unwrap().names(), ["w1", "w2"]);
        config.offline = true;
        assert_eq!(get(&config).unwrap(), path);
        fs::remove_file(path.join(own).join("b.safetensors")).unwrap();
        assert!(get(&config).is_err());
    }
}

#[test]
fn an_adapter_is_fetched() {
    let mut hub = tiny();
    hub.files =
        [("adapter_config.json".to_string(), b"{}".to_vec()), ("adapter_model.safetensors".to_string(), tensors(3))]
            .into();
    let (server, cache) = (serve(hub), tempfile::tempdir().unwrap());
    let mut config = config(&server, &cache);
    let path = get(&config).unwrap();
    assert!(path.join("adapter_model.safetensors").is_file());
    config.offline = true;
    assert_eq!(get(&config).unwrap(), path);
}

/// Each case: a hub, a repository, and what the error and its hint must contain.
#[test]
fn what_the_hub_refuses_or_gets_wrong_is_one_line_and_a_hint() {
    let cases: Vec<(&str, Hub, &str, &str, &str)> = vec![
        ("no such repository", tiny(), "org/other", "org/other: http://", "check the name and the revision"),
        ("gated", Hub { token: Some("other".into()), ..tiny() }, "org/tiny", "answered 401 Unauthorized", "HF_TOKEN"),
        ("shard outside", sharded(["../../evil", "b"]), "org/tiny", "`../../evil` of tensor `w1` is outside", ""),
        ("absolute shard", sharded(["/tmp/evil", "b"]), "org/tiny", "`/tmp/evil` of tensor `w1` is outside", ""),
        (
            "a file that is listed only",
            Hub { ghosts: vec!["generation_config.json".into()], ..tiny() },
            "org/tiny",
            "",
            "",
        ),
        (
            "evil etag",
            Hub { etag: Some("../../evil".into()), ..tiny() },
            "org/tiny",
            "named its content `../../evil`",
            "",
        ),
        ("evil commit", Hub { commit: "../../evil".into(), ..tiny() }, "org/tiny", "names the commit `../../evil`", ""),
        (
            "no weights",
            Hub { files: [("config.json".into(), vec![b'{'])].into(), ..tiny() },
            "org/tiny",
            "no model.safetensors",
            "safetensors",
        ),
        ("path as id", tiny(), "../tiny", "`../tiny` is not the id of a repository", "owner/name"),
    ];
    for (case, hub, repo, message, hint) in cases {
        let (server, cache) = (serve(hub), tempfile::tempdir().unwrap());
        let config = config(&server, &cache);
        let result = fetch(&config, repo, None, &mut |_| {});
        if message.is_empty() {
            // An optional file that answers 404 is left out.
            assert!(result.is_ok(), "{case}: {result:?}");
            continue;
        }
        let error = result.expect_err(case);
        assert!(error.to_string().contains(message), "{case}: {error}");
        assert!(!error.to_string().contains('\n') && !error.to_string().contains("secret"), "{case}: {error}");
        assert!(error.hint().unwrap_or_default().contains(hint), "{case}: {:?}", error.hint());
        let outside = fs::read_dir(cache.path()).unwrap().filter(|e| e.as_ref().unwrap().file_name() != "hub");
        assert_eq!(outside.count(), 0, "{case}: nothing outside the cache");
    }
    let nobody = HubConfig {
        endpoint: "http://127.0.0.1:9".into(),
        cache_dir: tempfile::tempdir().unwrap().path().into(),
        token: None,
        offline: false,
    };
    let error = get(&nobody).unwrap_err();
    assert!(error.to_string().starts_with("cannot reach http://127.0.0.1:9: "), "{error}");
    assert!(error.hint().unwrap().contains("HF_HUB_OFFLINE"));
}

#[test]
fn ids() {
    for id in ["gpt2", "Qwen/Qwen2.5-0.5B", "a/b_c-d.e"] {
        assert!(is_repo_id(id), "{id}");
    }
    for id in ["", "/", "a/", "a/b/c", "../a", "a/..", "a--b/c", "./models", "a b", "-a/b", "a/b.", "models/tiny/"] {
        assert!(!is_repo_id(id), "{id}");
    }
}

#[test]
fn the_environment_is_read_as_huggingface_hub_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("token"), " from-file\n").unwrap();
    let home = dir.path().to_str().unwrap();
    let from = |vars: &[(&str, &str)]| {
        HubConfig::from_vars(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_string()))
    };
    let config = from(&[("HF_HOME", home)]);
    assert_eq!(config.endpoint, "https://huggingface.co");
    assert_eq!(config.cache_dir, dir.path().join("hub"));
    assert_eq!(config.token.as_deref(), Some("from-file"));
    assert!(!config.offline);
    let config = from(&[
        ("HF_HOME", home),
        ("HF_HUB_CACHE", "/cache"),
        ("HF_TOKEN", "mine"),
        ("HF_ENDPOINT", "https://mirror.example/"),
        ("HF_HUB_OFFLINE", "True"),
    ]);
    assert_eq!((config.endpoint.as_str(), config.cache_dir), ("https://mirror.example", PathBuf::from("/cache")));
    assert_eq!((config.token.as_deref(), config.offline), (Some("mine"), true));
    assert!(!format!("{:?}", from(&[("HF_TOKEN", "mine")])).contains("mine"));
    assert_eq!(from(&[("XDG_CACHE_HOME", "/x")]).cache_dir, PathBuf::from("/x/huggingface/hub"));
    assert!(!from(&[("HF_HUB_OFFLINE", "0")]).offline);
    let person = std::env::home_dir().unwrap();
    assert_eq!(from(&[("HF_HOME", "~/models")]).cache_dir, person.join("models/hub"));
    assert_eq!(from(&[("HF_HUB_CACHE", "~")]).cache_dir, person);
    assert_eq!(from(&[("HF_TOKEN", "mine"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token, None);
}

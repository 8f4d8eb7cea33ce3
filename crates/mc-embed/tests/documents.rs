//! Folders of real files: what is indexed, what is left out, and what a second run does again.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by a panic")]

use candle_core::Device;
use mc_embed::{
    EmbeddingModel, EncodeOptions, Prompt,
    documents::{Chunking, DocumentIndex, DocumentsConfig, Failure, Progress, SkipReason, TextModel, Update},
    index::{IndexConfig, VectorDtype, VectorIndex},
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, SystemTime},
};
use tempfile::TempDir;

const DIMENSIONS: usize = 64;

/// A model for tests: how often words occur, by the sum of their letters.
fn bag_of_words(texts: &[&str]) -> Vec<f32> {
    let vector = |text: &&str| {
        let mut counts = vec![0f32; DIMENSIONS];
        for word in text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
            let hash = word.to_lowercase().bytes().fold(7u32, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
            counts[hash as usize % DIMENSIONS] += 1.0;
        }
        counts
    };
    texts.iter().flat_map(vector).collect()
}

/// A model whose tokens are words.
fn bag<'a>(embed: impl Fn(&[&str]) -> Result<Vec<f32>, Failure> + Send + Sync + 'a) -> TextModel<'a> {
    let tokens = Box::new(|text: &str| Ok(text.split_whitespace().count()));
    TextModel { name: "bag", tokens, limit: 999, embed: Box::new(embed) }
}

struct Place {
    dir: TempDir,
    /// What was embedded.
    seen: Mutex<Vec<String>>,
}

impl Place {
    fn new(files: &[(&str, &str)]) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap(), seen: Mutex::default() };
        fs::create_dir(place.folder()).unwrap();
        for (name, text) in files {
            place.write(name, text);
        }
        place
    }
    fn folder(&self) -> PathBuf {
        self.dir.path().join("notes")
    }
    fn index(&self) -> PathBuf {
        self.dir.path().join("index")
    }
    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.folder().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fn with<R>(&self, f: impl FnOnce(&TextModel) -> R) -> R {
        let embed = |texts: &[&str]| {
            self.seen.lock().unwrap().extend(texts.iter().map(ToString::to_string));
            Ok(bag_of_words(texts))
        };
        f(&bag(embed))
    }
    fn create(&self) -> DocumentIndex {
        let config = DocumentsConfig { chunking: Chunking { size: 16, overlap: 4 }, ..self.config() };
        self.with(|model| DocumentIndex::create(self.index(), config, VectorDtype::Int8, model)).unwrap()
    }
    fn config(&self) -> DocumentsConfig {
        DocumentsConfig::new(self.folder()).unwrap()
    }
    /// Updates the index as a new process would; what it did, and which chunks it embedded.
    fn update(&self) -> (Update, Vec<String>) {
        let mut index = DocumentIndex::open(self.index()).unwrap();
        self.seen.lock().unwrap().clear();
        let update = self.with(|model| index.update(model, &mut |_| {})).unwrap();
        let fingerprint = 1;
        (update, self.seen.lock().unwrap().iter().skip(fingerprint).cloned().collect())
    }
    /// The best chunk: its file in the folder, lines and text.
    fn best(&self, query: &str) -> (String, (usize, usize), String) {
        let found = DocumentIndex::open(self.index()).unwrap().search(&bag_of_words(&[query]), 1).unwrap().remove(0);
        let path = found.path.strip_prefix(self.config().folder).unwrap().display().to_string();
        (path, (found.first_line, found.last_line), found.text)
    }
}

/// What happened to files: added, changed, removed, unchanged.
fn counts(update: &Update) -> [usize; 4] {
    [update.added, update.changed, update.removed, update.unchanged]
}

const TIDES: &str =
    "# Tides\n\nThe sea rises twice a day, and falls as often.\n\n# Boats\n\nA boat in the harbour lies dry at noon.\n";

#[test]
fn a_folder_is_found_again_by_lines() {
    let place = Place::new(&[("tides.md", TIDES), ("deep/er/cats.txt", "Cats sleep.\n\nDogs bark at night.\n")]);
    drop(place.create());
    let (update, seen) = place.update();
    assert_eq!((counts(&update), update.embedded, seen.len()), ([2, 0, 0, 0], 3, 3));
    let boats = ("tides.md".into(), (5, 7), "# Boats\n\nA boat in the harbour lies dry at noon.".to_string());
    assert_eq!(place.best("boat harbour dry"), boats);
    assert_eq!(place.best("dogs bark").0, "deep/er/cats.txt");
    let index = DocumentIndex::open(place.index()).unwrap();
    assert_eq!((index.vectors().len(), index.documents().chunking.size), (3, 16));
    assert!(index.search(&bag_of_words(&["sea"]), 99).unwrap().is_sorted_by(|a, b| a.score >= b.score));
}

#[test]
fn the_second_run_embeds_only_what_has_changed() {
    let place = Place::new(&[("a.md", "alpha one"), ("b.md", "beta two"), ("c.md", "gamma three")]);
    drop(place.create());
    place.update();
    let (update, seen) = place.update();
    assert_eq!((counts(&update), update.embedded, seen.len()), ([0, 0, 0, 3], 0, 0));

    place.write("b.md", "delta four five");
    place.write("d.txt", "epsilon");
    fs::remove_file(place.folder().join("c.md")).unwrap();
    let (update, seen) = place.update();
    assert_eq!(counts(&update), [1, 1, 1, 1]);
    assert_eq!(seen, ["delta four five", "epsilon"]);
    assert_eq!(place.best("delta").2, "delta four five");
    let all = DocumentIndex::open(place.index()).unwrap().search(&bag_of_words(&["beta gamma"]), 9).unwrap();
    let texts: Vec<_> = all.iter().map(|found| found.text.as_str()).collect();
    assert!(texts.len() == 3 && !texts.contains(&"beta two") && !texts.contains(&"gamma three"), "{texts:?}");

    // Touched, and the same text: known by its content.
    let later = SystemTime::now() + Duration::from_mins(1);
    fs::File::options().write(true).open(place.folder().join("a.md")).unwrap().set_modified(later).unwrap();
    let (update, seen) = place.update();
    assert_eq!((counts(&update), seen.len()), ([0, 0, 0, 3], 0));
}

/// Nor by size and time that were set to what they were, nor by a swap of two files that have the same.
#[test]
#[cfg(unix)]
fn a_text_of_the_same_size_and_time_is_seen() {
    let place = Place::new(&[("a.md", "alpha"), ("b.md", "bravo"), ("c.md", "gamma")]);
    let path = |name: &str| place.folder().join(name);
    let time = SystemTime::UNIX_EPOCH + Duration::from_mins(9);
    let set_time = |name: &str| fs::File::options().write(true).open(path(name)).unwrap().set_modified(time).unwrap();
    for name in ["a.md", "b.md", "c.md"] {
        set_time(name);
    }
    drop(place.create());
    place.update();
    for (from, to) in [("a.md", "x"), ("b.md", "a.md"), ("x", "b.md")] {
        fs::rename(path(from), path(to)).unwrap();
    }
    // Clocks of file systems tick every few milliseconds.
    std::thread::sleep(Duration::from_millis(50));
    place.write("c.md", "omega");
    set_time("c.md");
    let (update, seen) = place.update();
    assert_eq!((counts(&update), seen), ([0, 3, 0, 0], vec!["omega".to_string()]));
    for (text, name) in [("alpha", "b.md"), ("bravo", "a.md"), ("omega", "c.md")] {
        assert_eq!((place.best(text).0.as_str(), place.best(text).2.as_str()), (name, text));
    }
    // A size is seen whatever the time is.
    place.write("c.md", "omega and more");
    set_time("c.md");
    assert_eq!(place.update().1, ["omega and more"]);
}

/// As when a disk is not mounted, or a file is locked at the moment.
#[test]
fn what_is_out_of_reach_is_not_lost() {
    let place = Place::new(&[("a.md", "alpha"), ("b.md", "beta")]);
    drop(place.create());
    place.update();
    // Gone between the listing and the reading.
    place.write("b.md", "something else");
    let mut index = DocumentIndex::open(place.index()).unwrap();
    let mut away = |_| fs::remove_file(place.folder().join("b.md")).unwrap_or_default();
    let update = place.with(|model| index.update(model, &mut away)).unwrap();
    assert_eq!((counts(&update), index.vectors().len()), ([0, 0, 0, 1], 2));
    assert!(matches!(&update.skipped[..], [one] if matches!(one.reason, SkipReason::Unreadable(_))), "{update:?}");
    // The next time it is known to be gone.
    assert_eq!(counts(&place.update().0), [0, 0, 1, 1]);

    fs::remove_dir_all(place.folder()).unwrap();
    fs::create_dir(place.folder()).unwrap();
    let error = DocumentIndex::open(place.index())
        .and_then(|mut index| place.with(|model| index.update(model, &mut |_| {})))
        .unwrap_err();
    assert!(
        error.to_string().ends_with("notes: none of the files in the index is left") && error.hint().is_some(),
        "{error}"
    );
    assert_eq!(place.best("alpha").2, "alpha");
}

/// A run that ends in the middle has kept what it did, and what was there before; the next one does the rest.
#[test]
fn a_run_that_was_interrupted_goes_on() {
    let place = Place::new(&[("a.md", "alpha"), ("m.md", "mu"), ("z.md", "zeta")]);
    drop(place.create());
    place.update();
    for name in ["b", "c", "d", "e"] {
        place.write(&format!("{name}.md"), format!("new {name}"));
    }
    let fails = |texts: &[&str]| {
        if texts.contains(&"new d") { Err("the power is off".into()) } else { Ok(bag_of_words(texts)) }
    };
    let mut index = DocumentIndex::open(place.index()).unwrap().saved_every(2);
    index.update(&bag(fails), &mut |_| {}).unwrap_err();
    let all = DocumentIndex::open(place.index()).unwrap().search(&bag_of_words(&["x"]), 99).unwrap();
    let mut texts: Vec<_> = all.into_iter().map(|found| found.text).collect();
    texts.sort();
    assert_eq!(texts, ["alpha", "mu", "new b", "new c", "zeta"]);
    let (update, seen) = place.update();
    assert_eq!((counts(&update), seen), ([2, 0, 0, 5], vec!["new d".to_string(), "new e".into()]));
    // One that is not interrupted counts and keeps everything, wherever it was saved.
    fs::remove_dir_all(place.index()).unwrap();
    let mut index = place.create().saved_every(3);
    let update = place.with(|model| index.update(model, &mut |_| {})).unwrap();
    assert_eq!((counts(&update), update.embedded, index.vectors().len()), ([7, 0, 0, 0], 7, 7));
}

#[test]
fn an_index_is_no_document_of_its_own() {
    let place = Place::new(&[("a.json", "alpha"), ("index.d/b.json", "beta")]);
    let config = DocumentsConfig { extensions: vec!["json".into()], ..place.config() };
    let dir = place.folder().join("index");
    let mut index = place.with(|model| DocumentIndex::create(&dir, config, VectorDtype::F16, model)).unwrap();
    for expected in [[2, 0, 0, 0], [0, 0, 0, 2]] {
        let update = place.with(|model| index.update(model, &mut |_| {})).unwrap();
        assert_eq!(counts(&update), expected);
    }
}

/// The index takes the new name of its model, and counts chunks that the model has come to cut.
#[test]
fn a_model_may_move() {
    let place = Place::new(&[("a.md", "alpha beta gamma"), ("b.md", "delta")]);
    let mut index = place.create();
    let moved = TextModel { name: "moved", limit: 2, ..bag(|texts| Ok(bag_of_words(texts))) };
    assert_eq!(index.update(&moved, &mut |_| {}).unwrap().truncated, 1);
    // Those of files that are saved before the last are counted too.
    for name in ["c.md", "d.md"] {
        place.write(name, format!("epsilon zeta {name}"));
    }
    let mut index = DocumentIndex::open(place.index()).unwrap().saved_every(1);
    assert_eq!(index.update(&moved, &mut |_| {}).unwrap().truncated, 2);
    let again = TextModel { name: "again", ..bag(|texts| Ok(bag_of_words(texts))) };
    assert_eq!(index.update(&again, &mut |_| {}).unwrap().unchanged, 4);
    assert_eq!(DocumentIndex::open(place.index()).unwrap().vectors().config().model, "again");
    // One that reads less than a chunk makes no index.
    let dir = place.dir.path().join("other");
    let error = DocumentIndex::create(&dir, place.config(), VectorDtype::F16, &moved).unwrap_err();
    assert!(error.to_string().starts_with("`chunk_size` is 200, expected at most 2"), "{error}");
    assert!(!dir.exists());
}

#[test]
fn a_changed_text_of_the_same_length_is_seen_by_its_time() {
    let place = Place::new(&[("a.md", "alpha")]);
    drop(place.create());
    place.update();
    place.write("a.md", "omega");
    let later = SystemTime::now() + Duration::from_mins(1);
    fs::File::options().write(true).open(place.folder().join("a.md")).unwrap().set_modified(later).unwrap();
    assert_eq!(place.update().1, ["omega"]);
}

#[test]
fn what_is_no_text_is_left_out_and_said() {
    let place = Place::new(&[("good.md", "good"), ("other.rs", "fn main() {}"), ("UPPER.MD", "upper")]);
    place.write("binary.txt", b"a\0b");
    place.write("latin.txt", b"caf\xe9");
    place.write(".hidden.md", "secret");
    place.write(".git/notes.md", "secret");
    place.write(".gitignore", "drafts/\nold-*\n");
    // What lies above the folder says nothing of it.
    fs::write(place.dir.path().join(".gitignore"), "*\n").unwrap();
    place.write("drafts/a.md", "ignored");
    place.write("deep/old-b.md", "ignored");
    // Nor does what one user of a repository keeps to himself.
    place.write(".git/info/exclude", "good.md\n");
    place.write("bom.txt", "\u{feff}marked");
    place.write("empty.txt", "");
    let huge = fs::File::create(place.folder().join("huge.txt")).unwrap();
    huge.set_len((64 << 20) + 1).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("..", place.folder().join("loop")).unwrap();
        std::os::unix::fs::symlink("good.md", place.folder().join("link.md")).unwrap();
        std::os::unix::fs::symlink("nowhere", place.folder().join("broken.md")).unwrap();
        std::os::unix::net::UnixListener::bind(place.folder().join("socket.md")).unwrap();
    }
    drop(place.create());
    let (update, seen) = place.update();
    assert_eq!((update.added, seen), (4, ["upper", "marked", "good"].map(String::from).to_vec()));
    let mut skipped: Vec<_> = update.skipped.iter().map(|s| (name(&s.path), s.reason.clone())).collect();
    skipped.sort_by(|a, b| a.0.cmp(&b.0));
    let mut expected = vec![
        ("binary.txt", SkipReason::Binary),
        ("huge.txt", SkipReason::TooLarge),
        ("latin.txt", SkipReason::NotUtf8),
    ];
    if cfg!(unix) {
        expected.extend(["broken.md", "link.md", "loop"].map(|name| (name, SkipReason::Link)));
        expected.push(("socket.md", SkipReason::NotAFile));
    }
    expected.sort_by_key(|(name, _)| *name);
    assert_eq!(skipped, expected.into_iter().map(|(n, r)| (n.to_string(), r)).collect::<Vec<_>>());

    // A text that becomes something else disappears.
    place.write("good.md", b"now\0binary");
    assert_eq!(counts(&place.update().0), [0, 0, 1, 3]);
}

/// Where nobody can tell what is to be left out, nothing is read: git would read such a file byte by byte.
#[test]
#[cfg(unix)]
fn a_folder_whose_gitignore_cannot_be_read_is_left_out() {
    let odd = |name: &'static str, make: fn(&Path), expected: &'static str| {
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let place = Place::new(&[("good.md", "good"), ("deep/secret.txt", "secret"), ("deep/er/too.md", "too")]);
            drop(place.create());
            assert_eq!(place.update().0.added, 3);
            make(&place.folder().join("deep").join(name));
            place.write("deep/more.md", "more");
            place.write("new.md", "new");
            // What was indexed stays.
            let (update, seen) = place.update();
            let of_whole = counts(&update);
            make(&place.folder().join(name));
            let root = place.update().0;
            send.send((of_whole, seen, update.skipped, counts(&root), root.skipped)).unwrap();
        });
        let (of_deep, seen, skipped, of_root, root) = receive.recv_timeout(Duration::from_mins(1)).unwrap();
        assert_eq!((of_deep, seen), ([1, 0, 0, 1], vec!["new".to_string()]), "{expected}");
        let reason = SkipReason::IgnoreFile(format!("{name} {expected}"));
        assert_eq!(
            skipped.iter().map(|s| (self::name(&s.path), &s.reason)).collect::<Vec<_>>(),
            [("deep".into(), &reason)]
        );
        assert_eq!((of_root, root.len(), &root[0].reason), ([0, 0, 0, 0], 1, &reason));
    };
    for name in [".gitignore", ".ignore"] {
        odd(name, |path| fs::write(path, b"# f\xfcr alle\nsecret.txt\n").unwrap(), "is not UTF-8");
        odd(name, |path| fs::write(path, vec![b'a'; (1 << 20) + 1]).unwrap(), "is larger than 1 MiB");
        odd(name, |path| std::os::unix::fs::symlink("/dev/zero", path).unwrap(), "is not a file");
        odd(
            name,
            |path| assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success()),
            "is not a file",
        );
    }
    assert_eq!(
        SkipReason::IgnoreFile(".ignore is not UTF-8".into()).to_string(),
        "a folder whose .ignore is not UTF-8"
    );
}

#[test]
#[cfg(unix)]
fn a_folder_whose_path_is_no_text_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new(&[("a.md", "alpha")]);
    let folder = place.dir.path().join(std::ffi::OsStr::from_bytes(b"fo\xff"));
    if fs::create_dir(&folder).is_err() {
        // Some systems have no such names.
        return;
    }
    let error = DocumentsConfig::new(&folder).unwrap_err();
    assert!(
        error.to_string().contains("is not UTF-8") && error.hint().unwrap().starts_with("rename the folder"),
        "{error}"
    );
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_string()
}

/// More chunks than are embedded at a time, and progress that never goes back.
#[test]
fn long_files_and_progress() {
    let line = |i: usize| if i == 4321 { "zebra zebra zebra\n".into() } else { format!("w{i} x{}\n", i % 7) };
    let text: String = (0..9000).map(line).collect();
    let place = Place::new(&[("long.txt", &text), ("short.txt", "needle in hay")]);
    let mut index = place.create();
    let mut seen: Vec<Progress> = vec![];
    let update = place.with(|model| index.update(model, &mut |p| seen.push(p))).unwrap();
    assert!(update.embedded > 1000, "{update:?}");
    assert!(seen.is_sorted_by(|a, b| a.chunks <= b.chunks && a.files <= b.files) && seen.len() > 4);
    let last = seen.last().unwrap();
    assert_eq!((last.files, last.of_files, last.chunks, last.of_chunks), (2, 2, update.embedded, update.embedded));
    assert_eq!(place.best("needle hay").0, "short.txt");
    let found = place.best("zebra");
    assert!(found.2.contains("zebra") && (found.1.0..=found.1.1).contains(&4322), "{found:?}");
}

#[test]
fn another_model_a_failing_model_and_other_rows_are_refused() {
    let place = Place::new(&[("a.md", "alpha beta gamma")]);
    let mut index = place.create();
    let reversed = |texts: &[&str]| Ok(bag_of_words(texts).into_iter().rev().collect());
    let other = TextModel { name: "other", ..bag(reversed) };
    let error = index.update(&other, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("the index has model `bag`, expected `other`"), "{error}");
    let calls = Mutex::new(0);
    let failing = |texts: &[&str]| {
        let mut calls = calls.lock().unwrap();
        *calls += 1;
        if *calls == 1 { Ok(bag_of_words(texts)) } else { Err("out of memory".into()) }
    };
    let error = index.update(&bag(failing), &mut |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "`bag`: out of memory");
    assert!(index.vectors().is_empty());
    let short = |texts: &[&str]| {
        Ok(if texts.len() == 1 && texts[0].starts_with("alpha") { vec![1.0] } else { bag_of_words(texts) })
    };
    let error = index.update(&bag(short), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("`bag` made 1 numbers of 1 texts"), "{error}");

    let mut rows = VectorIndex::open(place.index()).unwrap();
    let error = rows.append(&[0.0; DIMENSIONS], &[]).unwrap_err();
    assert!(error.to_string().contains("the rows are chunks of documents"), "{error}");
    let bare = place.dir.path().join("bare");
    VectorIndex::create(&bare, IndexConfig { dimensions: 2, ..IndexConfig::default() }).unwrap();
    assert!(DocumentIndex::open(&bare).unwrap_err().to_string().contains("its vectors are not of documents"));
}

#[test]
fn a_second_update_at_once_is_refused_before_it_does_any_work() {
    let place = Place::new(&[("a.md", "alpha")]);
    let mut index = place.create();
    let other = Mutex::new(DocumentIndex::open(place.index()).unwrap());
    let meanwhile = Mutex::new(None);
    let embed = |texts: &[&str]| {
        let update = place.with(|model| other.lock().unwrap().update(model, &mut |_| {}));
        *meanwhile.lock().unwrap() = Some(update.unwrap_err().to_string());
        Ok(bag_of_words(texts))
    };
    index.update(&bag(embed), &mut |_| {}).unwrap();
    assert!(meanwhile.lock().unwrap().as_ref().unwrap().contains("another run is writing this index"));
    let late = place.with(|model| other.lock().unwrap().update(model, &mut |_| {})).unwrap_err();
    assert!(late.to_string().contains("has changed this index meanwhile"), "{late}");
}

/// With real tokenizers, of words and of bytes, chunks have the tokens that were asked for, as the model counts them behind
/// its prompt, and are read whole.
#[test]
fn a_model_reads_its_chunks_whole() {
    let line = |i: usize| match i {
        0..300 => format!("The {i}th tide, and its boats; ünïcode{i}.{}", "\n".repeat(i % 3)),
        300..1200 => format!("{}\n", ["a", "b"][i % 2]),
        _ => format!("{}if river({i}) {{ copper += \"heat\"; }}\n", "    ".repeat(i % 5)),
    };
    let text = (0..1500).map(line).collect::<Vec<_>>().concat();
    let place = Place::new(&[("long.md", &text), ("short.md", "one")]);
    for golden in ["bert-mean", "qwen3-last"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(golden);
        let model = prompted(&dir, &place.dir.path().join(golden));
        let document = |text: &str| model.count_tokens(text, Prompt::Document).unwrap();
        assert!(document("") > model.count_tokens("", Prompt::Text("")).unwrap(), "{golden} has a prompt");
        let of_texts = TextModel::new(golden, &model);
        for size in [model.max_tokens(), model.max_tokens() / 2] {
            let config = DocumentsConfig { chunking: Chunking { size, overlap: size / 4 }, ..place.config() };
            let _ = fs::remove_dir_all(place.index());
            let mut index = DocumentIndex::create(place.index(), config, VectorDtype::F32, &of_texts).unwrap();
            assert_eq!(index.update(&of_texts, &mut |_| {}).unwrap().truncated, 0);
            let query: Vec<f32> = model.encode_query(&["tide"]).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let texts: Vec<_> = index.search(&query, 9999).unwrap().into_iter().map(|found| found.text).collect();
            let longest = texts.iter().map(|text| document(text)).max().unwrap();
            assert!(texts.len() > 30 && (size - size / 8..=size).contains(&longest), "{golden}: {longest} of {size}");
            let options = EncodeOptions { prompt: Prompt::Document, ..EncodeOptions::default() };
            assert_eq!(model.encode_with(&texts, &options, &mut |_| {}).unwrap().truncated, 0);
            // The vector that is kept is the model's.
            let own = model.encode_document(&texts[..1]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let best = index.search(&own, 1).unwrap().remove(0);
            assert!(best.text == texts[0] && best.score > 0.99999, "{best:?}");
        }
    }
}

/// A golden model with a prompt for documents.
fn prompted(golden: &Path, dir: &Path) -> EmbeddingModel {
    for entry in walk(golden) {
        let to = dir.join(entry.strip_prefix(golden).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(&entry, to).unwrap();
    }
    let prompts = r#"{"prompts": {"document": "a passage of a text: "}}"#;
    fs::write(dir.join("config_sentence_transformers.json"), prompts).unwrap();
    EmbeddingModel::from_pretrained(dir, Device::Cpu).unwrap()
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn other_settings_are_refused() {
    let place = Place::new(&[("a.md", "alpha")]);
    let index = place.create();
    let (vectors, same) = (VectorDtype::Int8, index.documents().clone());
    let dimensions = index.vectors().config().dimensions;
    index.check_settings(&same, vectors, dimensions).unwrap();
    let error = index.check_settings(&same, vectors, dimensions + 1).unwrap_err().to_string();
    assert!(error.ends_with(&format!("the index has dimensions {dimensions}, expected {}", dimensions + 1)), "{error}");
    let says = |documents: &DocumentsConfig, vectors, what: &str| {
        let error = index.check_settings(documents, vectors, dimensions).unwrap_err();
        assert!(error.to_string().ends_with(what) && error.hint().is_some(), "{error}");
    };
    says(&same, VectorDtype::F32, "the index has vectors int8, expected f32");
    let chunking = Chunking { size: 100, overlap: 4 };
    says(&DocumentsConfig { chunking, ..same.clone() }, vectors, "the index has chunk size 16, expected 100");
    says(&DocumentsConfig { folder: "/other".into(), ..same }, vectors, "/notes, expected /other");
}

#[test]
fn folders_that_are_none() {
    let place = Place::new(&[("a.md", "alpha")]);
    assert!(DocumentsConfig::new(place.folder().join("a.md")).unwrap_err().to_string().ends_with("is a file"));
    assert!(DocumentsConfig::new(place.folder().join("none")).is_err());
    let mut index = place.create();
    fs::remove_dir_all(place.folder()).unwrap();
    let error = place.with(|model| index.update(model, &mut |_| {})).unwrap_err();
    assert!(error.to_string().contains("notes"), "{error}");
}

/// Where a model fails over one text, the file and the line of it are named.
#[test]
fn a_text_that_a_model_cannot_read_is_named_by_its_place() {
    let place = Place::new(&[("a.md", "alpha"), ("b.md", "beta"), ("deep/c.md", "one\n\nbroken")]);
    drop(place.create());
    let embed = |texts: &[&str]| match texts.iter().position(|text| text.contains("broken")) {
        Some(text) => Err(mc_embed::Error::NotFinite { text }.into()),
        None => Ok(bag_of_words(texts)),
    };
    let tokens = |text: &str| Ok(text.split_whitespace().count());
    let model = TextModel { name: "words", tokens: Box::new(tokens), limit: 256, embed: Box::new(embed) };
    let error = DocumentIndex::open(place.index()).unwrap().update(&model, &mut |_| {}).unwrap_err().to_string();
    let end = "c.md, line 1: what the model makes of it is not finite";
    assert!(error.contains("deep") && error.ends_with(end) && !error.contains("text "), "{error}");
}

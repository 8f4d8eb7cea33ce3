//! What an index knows of its files decides which of them are read, and when what is done is written.

use super::*;
use crate::{
    documents::{Chunking, Failure},
    index::VectorDtype,
};
use serde_json::{Value, json};
use std::{fs, time::Duration};

fn model<'a>(embed: impl Fn(&[&str]) -> Result<Vec<f32>, Failure> + Send + Sync + 'a) -> TextModel<'a> {
    let tokens = Box::new(|text: &str| Ok(text.split_whitespace().count()));
    TextModel { name: "lengths", tokens, limit: 999, embed: Box::new(embed) }
}

fn lengths(texts: &[&str]) -> Vec<f32> {
    texts.iter().flat_map(|text| [1.0, text.len() as f32]).collect()
}

/// An index over these files, not filled yet.
fn index(dir: &Path, files: &[(&str, &str)]) -> DocumentIndex {
    let folder = dir.join("notes");
    fs::create_dir(&folder).unwrap();
    for (name, text) in files {
        fs::write(folder.join(name), text).unwrap();
    }
    let documents =
        DocumentsConfig { chunking: Chunking { size: 8, overlap: 0 }, ..DocumentsConfig::new(&folder).unwrap() };
    DocumentIndex::create(dir.join("index"), documents, VectorDtype::F32, &model(|texts| Ok(lengths(texts)))).unwrap()
}

fn update(index: &mut DocumentIndex) -> Update {
    index.update(&model(|texts| Ok(lengths(texts))), &mut |_| {}).unwrap()
}

/// Changes what the index knows of its first file.
fn edit(index: &mut DocumentIndex, change: impl Fn(&mut Value)) {
    let mut files: Value = serde_json::from_slice(index.index.notes().unwrap()).unwrap();
    change(&mut files[0]);
    let lock = index.index.lock().unwrap();
    let plan: Vec<_> = (0..index.index.len()).map(Source::Old).map(Row::of).collect();
    let notes = serde_json::to_vec(&files).unwrap();
    index.index.rewrite(&lock, &plan, &NewRows { vectors: &[], records: &[] }, &notes).unwrap();
}

/// A file is read where anything that the system says of it differs, or an older index does not know it. Here the hash shows
/// whether it was: the index has a wrong one.
#[test]
fn a_file_is_read_if_any_part_of_its_stamp_differs() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = index(dir.path(), &[("a.md", "alpha")]);
    update(&mut index);
    assert_eq!(index.known().unwrap()[0].stamp.size, 5);
    edit(&mut index, |file| file["sha256"] = json!("wrong"));
    assert_eq!(update(&mut index).unchanged, 1, "the stamp is the same");
    let unix = ["changed", "inode"].into_iter().filter(|_| cfg!(unix));
    for field in ["size", "modified"].into_iter().chain(unix.clone()) {
        edit(&mut index, |file| {
            file["sha256"] = json!("wrong");
            file[field] = json!(1);
        });
        let done = update(&mut index);
        assert_eq!((done.changed, done.unchanged), (1, 0), "{field}");
    }
    for known in [true, false] {
        edit(&mut index, |file| {
            if !known {
                file["sha256"] = json!("wrong");
            }
            for field in unix.clone() {
                file.as_object_mut().unwrap().remove(field);
            }
        });
        // Once: then the index knows them.
        let [first, second] = [update(&mut index), update(&mut index)];
        let changed = usize::from(!known && cfg!(unix));
        assert_eq!((first.changed, first.embedded, second.changed), (changed, changed, 0));
        let knows = |field| index.known().unwrap().iter().any(|k| json!(k.stamp)[field] != json!(0));
        assert!(unix.clone().all(knows));
    }
}

/// A model that fails after two pieces of work has lost the second at most, once the time has come; the file that it was at
/// is not half there.
#[test]
fn what_is_embedded_is_written_when_the_time_has_come() {
    let long = (0..300).map(|i| format!("# chunk {i}\n\nof the long file\n")).collect::<Vec<_>>().concat();
    let names: Vec<String> = (0..300).map(|i| format!("a{i:03}.md")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), name.as_str())).chain([("b.md", &*long)]).collect();
    for (interval, there) in [(Duration::ZERO, names.len()), (Duration::from_mins(1), 0)] {
        let dir = tempfile::tempdir().unwrap();
        let mut index = DocumentIndex { interval, ..index(dir.path(), &files) };
        let fails = |texts: &[&str]| {
            let off = texts.iter().any(|text| text.contains("chunk 290"));
            if off { Err("the power is off".into()) } else { Ok(lengths(texts)) }
        };
        index.update(&model(fails), &mut |_| {}).unwrap_err();
        let mut index = DocumentIndex::open(dir.path().join("index")).unwrap();
        assert_eq!(index.index.len(), there, "{interval:?}");
        let done = update(&mut index);
        assert_eq!((done.unchanged, done.embedded, index.index.len()), (there, 600 - there, 600));
        // Each row is that of its file.
        for (row, known) in index.known().unwrap().iter().take(names.len()).enumerate() {
            let record = Record::read(&index.index, row, index.index.record(row).unwrap()).unwrap();
            assert_eq!((&*record.path, &*record.text), (&*known.name, &*known.name));
        }
    }
}

/// What a search says of all chunks: the file, where it starts and its text.
fn all(index: &DocumentIndex) -> Vec<(String, usize, String)> {
    let found = index.search(&[1.0, 1.0], 99).unwrap().into_iter();
    let mut all: Vec<_> =
        found.map(|f| (f.path.file_name().unwrap().to_str().unwrap().into(), f.first_line, f.text)).collect();
    all.sort();
    all
}

/// A file that was renamed or copied, or is there twice, is embedded once; its chunks are said to be where they are.
#[test]
fn what_was_moved_or_copied_is_not_embedded_again() {
    let dir = tempfile::tempdir().unwrap();
    let text = "# One\n\na b c d\n\n# Two\n\ne f g h\n";
    let mut index = index(dir.path(), &[("a.md", text), ("b.md", "bee"), ("empty.md", "")]);
    update(&mut index);
    let at = |name: &str| dir.path().join("notes").join(name);
    let of_two =
        |name: &str| [(1, "# One\n\na b c d"), (5, "# Two\n\ne f g h")].map(|(l, t)| (name.into(), l, t.into()));
    fs::rename(at("a.md"), at("z.md")).unwrap();
    fs::copy(at("b.md"), at("c.md")).unwrap();
    for (name, text) in [("d.md", "delta"), ("e.md", "delta"), ("void.md", "")] {
        fs::write(at(name), text).unwrap();
    }
    let done = update(&mut index);
    assert_eq!((done.added, done.moved, done.removed, done.unchanged, done.embedded), (5, 3, 1, 2, 1));
    let mut expected: Vec<_> = ["bee", "bee", "delta", "delta"]
        .into_iter()
        .zip(["b.md", "c.md", "d.md", "e.md"])
        .map(|(text, name)| (name.to_string(), 1, text.to_string()))
        .chain(of_two("z.md"))
        .collect();
    assert_eq!(all(&index), expected);
    let scores: Vec<_> = index.search(&lengths(&["delta"]), 2).unwrap().iter().map(|found| found.score).collect();
    assert!(scores.iter().all(|score| *score > 0.9999), "{scores:?}");

    // Two that change places have what the other had.
    for (from, to) in [("b.md", "x"), ("z.md", "b.md"), ("x", "z.md")] {
        fs::rename(at(from), at(to)).unwrap();
    }
    let done = update(&mut index);
    assert_eq!((done.changed, done.moved, done.embedded), (2, 2, 0));
    expected = [of_two("b.md").to_vec(), expected[1..4].to_vec(), vec![("z.md".into(), 1, "bee".into())]].concat();
    assert_eq!(all(&index), expected);

    // What is cut in another way is embedded: one chunk, as `#` is no heading there.
    fs::copy(at("b.md"), at("plain.txt")).unwrap();
    let done = update(&mut index);
    assert_eq!((done.added, done.moved), (1, 0));
    assert!(
        all(&index).iter().any(|(name, _, text)| name == "plain.txt" && text.starts_with("# One") && text.len() > 14)
    );
}

/// Rows of a content that was dropped meanwhile are not taken over, however often the index is saved in between.
#[test]
fn files_change_places_while_the_index_is_saved() {
    for saved in 1..4 {
        let dir = tempfile::tempdir().unwrap();
        let mut index = index(dir.path(), &[("a.md", "alpha"), ("b.md", "beta one"), ("c.md", "gamma one two")]);
        update(&mut index);
        for (name, text) in [("a.md", "gamma one two"), ("b.md", "delta"), ("c.md", "alpha"), ("d.md", "beta one")] {
            fs::write(dir.path().join("notes").join(name), text).unwrap();
        }
        let mut index = index.saved_every(saved);
        let done = update(&mut index);
        assert_eq!((done.added, done.changed, done.moved + done.embedded), (1, 3, 4));
        let texts: Vec<_> = all(&index).into_iter().map(|(_, _, text)| text).collect();
        assert_eq!(texts, ["gamma one two", "delta", "alpha", "beta one"]);
        for text in texts {
            let best = index.search(&lengths(&[&text]), 4).unwrap();
            assert!(best.iter().any(|found| found.text == text && found.score > 0.99999), "{text}: {best:?}");
        }
    }
}

#[test]
fn a_file_that_is_gone_is_not_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = index(dir.path(), &[("a.md", "alpha"), ("b.md", "beta")]);
    update(&mut index);
    fs::remove_file(dir.path().join("notes/a.md")).unwrap();
    let done = update(&mut index);
    assert_eq!((done.removed, done.unchanged, done.embedded), (1, 1, 0));
    let index = DocumentIndex::open(dir.path().join("index")).unwrap();
    assert_eq!(all(&index), [("b.md".into(), 1, "beta".into())]);
}

#[test]
fn markdown_is_known_by_its_ending_in_capitals_too() {
    let dir = tempfile::tempdir().unwrap();
    let text = "one two three\n\n# Four\n";
    let mut index = index(dir.path(), &[("README.MD", text), ("b.MarkDown", text), ("plain.TXT", text)]);
    update(&mut index);
    let lines: Vec<_> = all(&index).into_iter().map(|(name, line, _)| (name, line)).collect();
    let expected = [("README.MD", 1), ("README.MD", 3), ("b.MarkDown", 1), ("b.MarkDown", 3), ("plain.TXT", 1)];
    assert_eq!(lines, expected.map(|(name, line)| (name.to_string(), line)));
}

/// An index is opened or made; as long as it has no rows, as after a first run that was interrupted, it takes other settings.
#[test]
fn an_index_without_rows_takes_new_settings() {
    let dir = tempfile::tempdir().unwrap();
    let empty = index(dir.path(), &[("a.md", "alpha")]);
    let (at, same) = (empty.index.dir().to_path_buf(), empty.documents);
    let wide = |texts: &[&str]| Ok(texts.iter().flat_map(|text| [0.0, 1.0, text.len() as f32]).collect());
    let other = TextModel { name: "other", ..model(wide) };
    let open =
        |documents: &DocumentsConfig, vectors| DocumentIndex::open_or_create(&at, documents.clone(), vectors, &other);
    let small = DocumentsConfig { chunking: Chunking { size: 3, overlap: 0 }, ..same.clone() };
    assert!(open(&small, VectorDtype::Int8).unwrap_err().to_string().starts_with("`chunk_size` is 3"));
    let big = DocumentsConfig { chunking: Chunking { size: 9, overlap: 2 }, ..same.clone() };
    let mut index = open(&big, VectorDtype::Int8).unwrap();
    assert_eq!(index.update(&other, &mut |_| {}).unwrap().added, 1);
    let index = open(&big, VectorDtype::Int8).unwrap();
    let config = index.index.config();
    assert_eq!((config.model.as_str(), config.dimensions, config.vectors), ("other", 3, VectorDtype::Int8));
    assert_eq!((index.index.len(), index.documents.chunking.size), (1, 9));
    // With rows it is held to them.
    assert!(
        open(&same, VectorDtype::Int8).unwrap_err().to_string().ends_with("the index has chunk size 9, expected 8")
    );
    // In a directory without an index there is one now.
    let new = DocumentIndex::open_or_create(dir.path().join("new"), same, VectorDtype::F16, &other).unwrap();
    assert!(new.index.is_empty() && DocumentIndex::open(dir.path().join("new")).is_ok());
}

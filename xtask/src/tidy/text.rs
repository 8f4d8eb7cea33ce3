//! Invariants of documents and other text files.

use super::Violation;

const ROOT_DOCUMENTS: &[&str] = &["README.md", "CHANGELOG.md", "CONTRIBUTING.md"];

/// The only Markdown at the root is [`ROOT_DOCUMENTS`].
pub(super) fn root_documents(files: &[(String, String)]) -> Vec<Violation> {
    let stray = |path: &str| path.ends_with(".md") && !path.contains('/') && !ROOT_DOCUMENTS.contains(&path);
    let paths = files.iter().map(|(path, _)| path).filter(|path| stray(path));
    paths.map(|path| Violation { place: path.clone(), found: "a document at the root".to_owned() }).collect()
}

/// No absolute path of one machine. Data (`.jsonl`, `.json`) may speak of any path.
pub(super) fn no_machine_paths(files: &[(String, String)]) -> Vec<Violation> {
    // Without their slashes, so that this file passes its own check.
    let machine = ["work", "root", "tmp/lab"].map(|folder| format!("/{folder}/"));
    let mut violations = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| !path.ends_with(".jsonl") && !path.ends_with(".json")) {
        for (number, line) in text.lines().enumerate() {
            let found = machine.iter().filter(|folder| has_absolute(line, folder));
            violations.extend(found.map(|folder| Violation {
                place: format!("{path}:{}", number + 1),
                found: format!("the path {folder}"),
            }));
        }
    }
    violations
}

/// Whether `folder` stands in `line` as an absolute path: `"/a/b"` has `/a/`, `x/a/b` has not.
fn has_absolute(line: &str, folder: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || "._-~/}".contains(c);
    line.match_indices(folder).any(|(at, _)| !line[..at].ends_with(part_of_name))
}

#[cfg(test)]
mod tests {
    //! Each invariant catches a violation and passes its opposite.
    use super::*;

    fn files(files: &[(&str, &str)]) -> Vec<(String, String)> {
        files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn root_documents_are_three() {
        let tree = files(&[("README.md", ""), ("NOTES.md", ""), ("docs/architecture.md", "")]);
        assert_eq!(root_documents(&tree).len(), 1);
        assert_eq!(root_documents(&tree)[0].place, "NOTES.md");
    }

    #[test]
    fn machine_paths_are_absolute() {
        let path = ["", "work", "main"].join("/");
        let tree = files(&[
            ("docs/a.md", &format!("first\nrun it in {path}")),
            ("docs/b.md", "see docs/work/a and $HOME/work/a"),
            ("data/train.jsonl", &path),
        ]);
        assert_eq!(no_machine_paths(&tree).iter().map(|v| v.place.as_str()).collect::<Vec<_>>(), ["docs/a.md:2"]);
    }
}

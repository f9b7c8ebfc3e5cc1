//! The files of the repository with their contents, read once for all rules. It judges nothing.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

pub struct Tree {
    pub files: Vec<TreeFile>,
}

pub struct TreeFile {
    /// Relative to the root of the repository, with `/`.
    pub path: String,
    pub bytes: u64,
    /// `None` for files that are not UTF-8 or too large to be written by hand.
    pub text: Option<String>,
}

/// Nobody writes a text of this size by hand.
const MAX_TEXT_BYTES: u64 = 4 << 20;

impl Tree {
    /// Reads everything below `root` but what git ignores by name.
    pub fn read(root: &Path) -> Result<Tree> {
        let ignored = fs::read_to_string(root.join(".gitignore")).unwrap_or_default();
        let skipped: Vec<&str> =
            ignored.lines().map(|line| line.trim().trim_matches('/')).filter(|name| !name.is_empty()).collect();
        let mut tree = Tree { files: Vec::new() };
        tree.read_folder(root, "", &skipped)?;
        tree.files.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(tree)
    }

    pub fn file(&self, path: &str) -> Option<&TreeFile> {
        self.files.iter().find(|file| file.path == path)
    }

    /// The files with one of these extensions that hold text.
    pub fn texts<'a>(&'a self, extensions: &'a [&str]) -> impl Iterator<Item = (&'a TreeFile, &'a str)> {
        self.files
            .iter()
            .filter(|file| file.path.rsplit_once('.').is_some_and(|(_, extension)| extensions.contains(&extension)))
            .filter_map(|file| Some((file, file.text.as_deref()?)))
    }

    fn read_folder(&mut self, folder: &Path, prefix: &str, skipped: &[&str]) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| format!("could not list `{}`", folder.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == ".git" || skipped.contains(&name.as_str()) {
                continue;
            }
            let path = format!("{prefix}{name}");
            // Links are not followed: what they point to is checked where it lies.
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.read_folder(&entry.path(), &format!("{path}/"), skipped)?;
            } else if kind.is_file() {
                let bytes = entry.metadata()?.len();
                let text = (bytes <= MAX_TEXT_BYTES).then(|| fs::read_to_string(entry.path()).ok()).flatten();
                self.files.push(TreeFile { path, bytes, text });
            }
        }
        Ok(())
    }

    /// A tree that exists only in a test.
    #[cfg(test)]
    pub fn of(files: &[(&str, &str)]) -> Tree {
        let file = |(path, text): &(&str, &str)| TreeFile {
            path: path.to_string(),
            bytes: text.len() as u64,
            text: Some(text.to_string()),
        };
        Tree { files: files.iter().map(file).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_folders_links_and_binary_contents_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for (path, content) in [
            (".gitignore", &b"/target\n"[..]),
            ("target/debug/a.rs", b""),
            (".git/config", b""),
            ("src/lib.rs", b"//! One."),
            ("picture.png", b"\xff\xfe"),
        ] {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), content).unwrap();
        }
        std::os::unix::fs::symlink("/", root.join("link")).unwrap();
        let tree = Tree::read(root).unwrap();
        let paths: Vec<&str> = tree.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, [".gitignore", "picture.png", "src/lib.rs"]);
        assert_eq!(tree.texts(&["png", "rs"]).count(), 1);
    }
}

//! The naive model: a tree in memory that does what a filesystem should.

use std::collections::BTreeMap;

/// A file or directory in the model; names lead to these by index, so hard links share one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    File(Vec<u8>),
    Dir,
    Link(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelNode {
    pub content: Content,
    pub perm: u16,
}

/// Paths (without a leading slash; "" is the root) to nodes.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    pub paths: BTreeMap<String, usize>,
    pub nodes: Vec<ModelNode>,
}

pub fn parent_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

pub fn name_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

impl Tree {
    pub fn new() -> Tree {
        let root = ModelNode { content: Content::Dir, perm: 0o755 };
        Tree { paths: BTreeMap::from([(String::new(), 0)]), nodes: vec![root] }
    }

    pub fn get(&self, path: &str) -> Option<&ModelNode> {
        self.paths.get(path).map(|at| &self.nodes[*at])
    }

    pub fn is_dir(&self, path: &str) -> bool {
        self.get(path).is_some_and(|node| node.content == Content::Dir)
    }

    pub fn file(&mut self, path: &str) -> Option<&mut Vec<u8>> {
        let at = *self.paths.get(path)?;
        match &mut self.nodes[at].content {
            Content::File(data) => Some(data),
            _ => None,
        }
    }

    pub fn children(&self, dir: &str) -> Vec<String> {
        let inside = |path: &&String| !path.is_empty() && parent_of(path) == dir;
        self.paths.keys().filter(inside).cloned().collect()
    }

    pub fn nlink(&self, path: &str) -> u32 {
        let Some(at) = self.paths.get(path) else { return 0 };
        if self.is_dir(path) {
            let dirs = self.children(path).into_iter().filter(|child| self.is_dir(child));
            return 2 + dirs.count() as u32;
        }
        self.paths.values().filter(|other| *other == at).count() as u32
    }

    /// Makes a node; false if that must fail.
    pub fn make(&mut self, path: &str, content: Content, perm: u16) -> bool {
        if self.paths.contains_key(path) || !self.is_dir(parent_of(path)) {
            return false;
        }
        self.nodes.push(ModelNode { content, perm });
        self.paths.insert(path.to_owned(), self.nodes.len() - 1);
        true
    }

    pub fn link(&mut self, from: &str, to: &str) -> bool {
        if self.get(from).is_none() || self.is_dir(from) {
            return false;
        }
        if self.paths.contains_key(to) || !self.is_dir(parent_of(to)) {
            return false;
        }
        self.paths.insert(to.to_owned(), self.paths[from]);
        true
    }

    pub fn unlink(&mut self, path: &str) -> bool {
        if self.get(path).is_none() || self.is_dir(path) {
            return false;
        }
        self.paths.remove(path).is_some()
    }

    pub fn rmdir(&mut self, path: &str) -> bool {
        if path.is_empty() || !self.is_dir(path) || !self.children(path).is_empty() {
            return false;
        }
        self.paths.remove(path).is_some()
    }

    fn subtree(&mut self, path: &str) -> Vec<(String, usize)> {
        let prefix = format!("{path}/");
        let inside: Vec<String> = self
            .paths
            .keys()
            .filter(|other| *other == path || other.starts_with(&prefix))
            .cloned()
            .collect();
        let take = |key: String| self.paths.remove(&key).map(|at| (key, at));
        inside.into_iter().filter_map(take).collect()
    }

    fn plant(&mut self, entries: Vec<(String, usize)>, from: &str, to: &str) {
        for (path, at) in entries {
            self.paths.insert(format!("{to}{}", &path[from.len()..]), at);
        }
    }

    pub fn rename(&mut self, from: &str, to: &str, no_replace: bool) -> bool {
        let (Some(moved), true) = (self.paths.get(from).copied(), self.is_dir(parent_of(to)))
        else {
            return false;
        };
        if from.is_empty() || to.is_empty() {
            return false;
        }
        if let Some(target) = self.paths.get(to).copied() {
            if no_replace {
                return false;
            }
            if target == moved {
                return true;
            }
            let mismatch = self.is_dir(from) != self.is_dir(to);
            if mismatch || (self.is_dir(to) && !self.children(to).is_empty()) {
                return false;
            }
        }
        if self.is_dir(from) && format!("{to}/").starts_with(&format!("{from}/")) {
            return false;
        }
        let entries = self.subtree(from);
        self.paths.remove(to);
        self.plant(entries, from, to);
        true
    }

    pub fn exchange(&mut self, a: &str, b: &str) -> bool {
        let both = self.paths.contains_key(a) && self.paths.contains_key(b);
        if a.is_empty() || b.is_empty() || !both {
            return false;
        }
        if self.paths[a] == self.paths[b] {
            return true;
        }
        let nested = |x: &str, y: &str| y.starts_with(&format!("{x}/"));
        if nested(a, b) || nested(b, a) {
            return false;
        }
        let (first, second) = (self.subtree(a), self.subtree(b));
        self.plant(first, a, b);
        self.plant(second, b, a);
        true
    }
}

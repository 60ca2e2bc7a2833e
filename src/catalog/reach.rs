//! Which layers which branch or snapshot needs, as of one moment.

use std::collections::{HashMap, HashSet};

use super::{Catalog, CatalogError};
use crate::format::{BranchId, LayerId};

/// Something that keeps a layer, and all below it, alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// The layer.
    pub layer: LayerId,
    /// The branch, or the branch of the snapshot.
    pub branch: BranchId,
    /// Id of the snapshot; none for the branch itself.
    pub snapshot: Option<i64>,
    /// Whether the branch was deleted.
    pub deleted: bool,
}

/// All roots and all chains, read at once.
#[derive(Debug)]
pub struct Reach {
    parents: HashMap<LayerId, Option<LayerId>>,
    /// The roots, in no particular order.
    pub roots: Vec<Root>,
}

impl Reach {
    /// The layers that the roots reach of which `counts` is true.
    pub fn of(&self, counts: impl Fn(&Root) -> bool) -> HashSet<LayerId> {
        let mut reached = HashSet::new();
        for root in self.roots.iter().filter(|root| counts(root)) {
            let mut next = Some(root.layer);
            while let Some(layer) = next.filter(|layer| reached.insert(*layer)) {
                next = self.parents.get(&layer).copied().flatten();
            }
        }
        reached
    }

    /// The layers that only those roots reach of which `counts` is true: what is free once they
    /// are gone.
    pub fn only_of(&self, counts: impl Fn(&Root) -> bool) -> HashSet<LayerId> {
        let others = self.of(|root| !counts(root));
        let mut own = self.of(counts);
        own.retain(|layer| !others.contains(layer));
        own
    }

    /// The layers that only this branch and its snapshots reach.
    pub fn only_of_branch(&self, branch: BranchId) -> HashSet<LayerId> {
        self.only_of(|root| root.branch == branch)
    }
}

impl Catalog {
    /// Everything that keeps layers alive, as of one moment.
    pub fn reach(&self) -> Result<Reach, CatalogError> {
        self.read(|connection| {
            // Two statements that must see the same: a fork in between would show half of itself.
            let transaction = connection.unchecked_transaction()?;
            let mut layers = transaction.prepare_cached("SELECT id, parent FROM layers")?;
            let parents = layers
                .query_map([], |row| {
                    Ok((LayerId(row.get(0)?), row.get::<_, Option<u64>>(1)?.map(LayerId)))
                })?
                .collect::<Result<_, _>>()?;
            let mut roots = transaction.prepare_cached(
                "SELECT r.layer, r.branch, r.snapshot, b.deleted_ms IS NOT NULL
                 FROM roots r JOIN branches b ON b.id = r.branch",
            )?;
            let roots = roots
                .query_map([], |row| {
                    Ok(Root {
                        layer: LayerId(row.get(0)?),
                        branch: BranchId(row.get(1)?),
                        snapshot: row.get(2)?,
                        deleted: row.get(3)?,
                    })
                })?
                .collect::<Result<_, _>>()?;
            Ok(Reach { parents, roots })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(layer: u64, branch: u64, snapshot: Option<i64>) -> Root {
        Root { layer: LayerId(layer), branch: BranchId(branch), snapshot, deleted: false }
    }

    #[test]
    fn what_only_one_needs() {
        // 1 <- 2 <- 3 (branch 1), 2 <- 4 (snapshot 7 of branch 1), 1 <- 5 (branch 2)
        let below = [(1, None), (2, Some(1)), (3, Some(2)), (4, Some(2)), (5, Some(1))];
        let parents =
            below.into_iter().map(|(id, below)| (LayerId(id), below.map(LayerId))).collect();
        let roots = vec![root(3, 1, None), root(4, 1, Some(7)), root(5, 2, None)];
        let reach = Reach { parents, roots };
        let ids = |ids: &[u64]| ids.iter().map(|id| LayerId(*id)).collect::<HashSet<_>>();
        assert_eq!(reach.of(|_| true), ids(&[1, 2, 3, 4, 5]));
        assert_eq!(reach.only_of_branch(BranchId(1)), ids(&[2, 3, 4]));
        assert_eq!(reach.only_of(|root| root.snapshot == Some(7)), ids(&[4]));
        assert_eq!(reach.only_of(|root| root.snapshot.is_none()), ids(&[3, 5]));
        assert_eq!(reach.only_of(|_| false), ids(&[]));
    }
}

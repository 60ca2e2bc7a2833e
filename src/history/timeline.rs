//! Which states follow one another.

use crate::catalog::{BranchRow, Catalog, CatalogError, SnapshotName, SnapshotRow, now_ms};
use crate::format::LayerId;

/// One state of a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The snapshot that keeps it.
    pub snapshot: SnapshotRow,
    /// Its layers, the newest first.
    chain: Vec<LayerId>,
}

impl State {
    /// Milliseconds since 1970. What the branch was a moment later may be in it already.
    pub fn at_ms(&self) -> i64 {
        self.snapshot.created_ms
    }
}

/// From one state to the next, by their places in [`History::states`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The earlier one.
    pub from: usize,
    /// The later one.
    pub to: usize,
}

/// All states of a branch of which there are snapshots.
#[derive(Clone, Debug)]
pub struct History {
    /// In the order of time.
    pub states: Vec<State>,
    /// When the branch was given another state, in milliseconds since 1970.
    reheaded_ms: Vec<i64>,
}

impl History {
    /// As the catalog has it.
    pub fn of(catalog: &Catalog, row: &BranchRow) -> Result<History, CatalogError> {
        let mut states = Vec::new();
        for snapshot in catalog.snapshots_of(row.id)? {
            let chain = catalog.chain(snapshot.layer)?.into_iter().map(|layer| layer.id).collect();
            states.push(State { snapshot, chain });
        }
        states.sort_by_key(|state| (state.at_ms(), state.snapshot.id));
        Ok(History { states, reheaded_ms: catalog.reheaded_ms(row.id)? })
    }

    /// The same with what the branch is now, which no snapshot keeps, as the last state.
    pub fn until_now(
        mut self,
        catalog: &Catalog,
        row: &BranchRow,
    ) -> Result<History, CatalogError> {
        let chain = catalog.chain(row.head)?.into_iter().map(|layer| layer.id).collect();
        let now = now_ms();
        let snapshot = SnapshotRow {
            id: i64::MAX,
            branch: row.id,
            name: SnapshotName::at_time("now", now),
            layer: row.head,
            created_by: row.created_by,
            created_ms: now,
            expires_ms: None,
        };
        self.states.push(State { snapshot, chain });
        Ok(self)
    }

    /// The state that the one at `place` goes on from: among the earlier ones the newest on whose
    /// layers it stands.
    pub fn before(&self, place: usize) -> Option<usize> {
        let later = &self.states[place];
        let depth = |earlier: usize| {
            let layer = self.states[earlier].snapshot.layer;
            later.chain.iter().position(|own| *own == layer)
        };
        let on_the_line = (0..place).filter_map(|earlier| Some((depth(earlier)?, earlier)));
        // Of those that are the same, the last.
        on_the_line
            .min_by_key(|(depth, earlier)| (*depth, std::cmp::Reverse(*earlier)))
            .map(|(_, at)| at)
    }

    /// All stretches, in the order of where they lead.
    pub fn stretches(&self) -> Vec<Stretch> {
        let stretch = |to: usize| Some(Stretch { from: self.before(to)?, to });
        (0..self.states.len()).filter_map(stretch).collect()
    }

    /// From when on a stretch tells what the branch was: not before the branch was given the state
    /// that it begins with.
    pub fn begins_ms(&self, stretch: Stretch) -> i64 {
        let (from, to) = (self.states[stretch.from].at_ms(), self.states[stretch.to].at_ms());
        let within = self.reheaded_ms.iter().filter(|at| (from..=to).contains(*at));
        within.max().copied().unwrap_or(from)
    }

    /// The stretch that tells what the branch was at a moment, in milliseconds since 1970.
    pub fn at(&self, ms: i64) -> Option<Stretch> {
        let tells = |stretch: &Stretch| {
            self.begins_ms(*stretch) <= ms && ms <= self.states[stretch.to].at_ms()
        };
        self.stretches().into_iter().find(tells)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::BranchId;

    /// States at 10, 20, .. with these chains, the newest layer first.
    fn history(chains: &[&[u64]], reheaded_ms: &[i64]) -> History {
        let state = |(place, chain): (usize, &&[u64])| {
            let at = (place as i64 + 1) * 10;
            let chain: Vec<LayerId> = chain.iter().map(|id| LayerId(*id)).collect();
            let snapshot = SnapshotRow {
                id: at,
                branch: BranchId(1),
                name: SnapshotName::at_time("s", at),
                layer: chain[0],
                created_by: 0,
                created_ms: at,
                expires_ms: None,
            };
            State { snapshot, chain }
        };
        let states = chains.iter().enumerate().map(state).collect();
        History { states, reheaded_ms: reheaded_ms.to_vec() }
    }

    fn at(history: &History, ms: i64) -> Option<(usize, usize)> {
        history.at(ms).map(|stretch| (stretch.from, stretch.to))
    }

    #[test]
    fn on_one_line_each_follows_the_one_before() {
        let line = history(&[&[1], &[2, 1], &[2, 1], &[5, 4, 2, 1]], &[]);
        assert_eq!(at(&line, 9), None);
        assert_eq!(at(&line, 10), Some((0, 1)));
        assert_eq!(at(&line, 15), Some((0, 1)));
        assert_eq!(at(&line, 25), Some((1, 2)), "nothing was written, but time went by");
        assert_eq!(at(&line, 31), Some((2, 3)));
        assert_eq!(at(&line, 41), None);
    }

    #[test]
    fn after_a_restore_what_was_before_is_another_line() {
        // The second was left at 25 for the first.
        let restored = history(&[&[1], &[2, 1], &[3, 1]], &[25]);
        assert_eq!(at(&restored, 15), Some((0, 1)));
        assert_eq!(at(&restored, 22), None, "what was written there is in no snapshot");
        assert_eq!(at(&restored, 26), Some((0, 2)));
    }

    #[test]
    fn a_state_that_stands_on_no_other_begins_a_line() {
        let reset = history(&[&[1], &[9]], &[]);
        assert_eq!(reset.stretches(), []);
    }
}

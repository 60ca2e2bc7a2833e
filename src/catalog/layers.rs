//! Layers: rows, chains, what is reachable, and imports.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::branches::{self, BranchRow, NewBranch};
use super::error::{Damage, is_conflict};
use super::oplog::{self, Actor};
use super::{Catalog, CatalogError, now_ms};
use crate::format::{LayerId, counted};

/// What may happen to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerState {
    /// An import fills it; whoever does so holds `run/import-<layer>.lock`.
    Importing,
    /// The head of one branch, which alone writes to it.
    Open,
    /// Never changes again.
    Sealed,
}

impl LayerState {
    /// The state as stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            LayerState::Importing => "importing",
            LayerState::Open => "open",
            LayerState::Sealed => "sealed",
        }
    }
}

impl fmt::Display for LayerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A layer as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRow {
    /// Random, 48 bits, not 0.
    pub id: LayerId,
    /// The layer it stands on; `None` for a base.
    pub parent: Option<LayerId>,
    /// Layers below it; 0 for a base.
    pub depth: u32,
    /// Whether it still changes.
    pub state: LayerState,
    /// Whether anything was ever written to it. If not, it needs no directory.
    pub used: bool,
    /// The directory that holds the contents of an adopted base.
    pub adopted_from: Option<PathBuf>,
    /// Milliseconds since 1970.
    pub created_ms: i64,
}

/// A layer that comes into being.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewLayer {
    /// Its id, chosen at random by the caller.
    pub id: LayerId,
    /// The sealed layer it stands on; `None` for a base.
    pub parent: Option<LayerId>,
}

const COLUMNS: &str = "id, parent, depth, state, used, adopted_from, created_ms";

fn from_row(row: &Row<'_>) -> rusqlite::Result<LayerRow> {
    let state = match row.get_ref(3)?.as_str()? {
        "importing" => LayerState::Importing,
        "open" => LayerState::Open,
        "sealed" => LayerState::Sealed,
        other => {
            let problem = format!("no layer state is called {other:?}").into();
            return Err(rusqlite::Error::FromSqlConversionFailure(3, Type::Text, problem));
        }
    };
    Ok(LayerRow {
        id: LayerId(row.get(0)?),
        parent: row.get::<_, Option<u64>>(1)?.map(LayerId),
        depth: row.get(2)?,
        state,
        used: row.get(4)?,
        adopted_from: row
            .get::<_, Option<Vec<u8>>>(5)?
            .map(|bytes| PathBuf::from(OsString::from_vec(bytes))),
        created_ms: row.get(6)?,
    })
}

fn find(connection: &Connection, id: LayerId) -> Result<Option<LayerRow>, CatalogError> {
    let sql = format!("SELECT {COLUMNS} FROM layers WHERE id = ?");
    Ok(connection.prepare_cached(&sql)?.query_row([id.0], from_row).optional()?)
}

/// The layer with `id`, or an error that names it.
pub(super) fn require(connection: &Connection, id: LayerId) -> Result<LayerRow, CatalogError> {
    find(connection, id)?.ok_or(CatalogError::LayerNotFound { layer: id })
}

/// The layer with `id`, which must be in state `wanted`.
pub(super) fn require_state(
    connection: &Connection,
    id: LayerId,
    wanted: LayerState,
) -> Result<LayerRow, CatalogError> {
    let row = require(connection, id)?;
    if row.state == wanted {
        Ok(row)
    } else {
        Err(CatalogError::LayerNotInState { layer: id, found: row.state, wanted })
    }
}

/// Adds a layer on top of `new.parent`, which must be sealed.
pub(super) fn insert(
    transaction: &Transaction<'_>,
    new: NewLayer,
    state: LayerState,
    used: bool,
    adopted_from: Option<&Path>,
) -> Result<(), CatalogError> {
    let depth = match new.parent {
        Some(parent) => require_state(transaction, parent, LayerState::Sealed)?.depth + 1,
        None => 0,
    };
    transaction
        .prepare_cached(
            "INSERT INTO layers (id, parent, depth, state, used, adopted_from, created_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            new.id.0,
            new.parent.map(|id| id.0),
            depth,
            state.as_str(),
            used,
            adopted_from.map(|path| path.as_os_str().as_bytes()),
            now_ms()
        ])
        .map_err(|e| {
            if is_conflict(&e) { CatalogError::LayerExists { layer: new.id } } else { e.into() }
        })?;
    Ok(())
}

/// Moves a layer to another state.
pub(super) fn set_state(
    transaction: &Transaction<'_>,
    id: LayerId,
    state: LayerState,
) -> Result<(), CatalogError> {
    transaction
        .prepare_cached("UPDATE layers SET state = ? WHERE id = ?")?
        .execute(params![state.as_str(), id.0])?;
    Ok(())
}

/// Proves that `chain` runs without a gap from its first row to a base.
fn prove_chain(chain: &[LayerRow]) -> Result<(), CatalogError> {
    for (upper, lower) in chain.iter().zip(chain.iter().skip(1)) {
        if upper.parent != Some(lower.id) {
            let parent = upper.parent.unwrap_or_default();
            return Err(damaged(upper.id, Damage::BrokenParent { parent }));
        }
    }
    match chain.last() {
        Some(LayerRow { id, depth: 0, parent: Some(parent), .. }) => {
            Err(damaged(*id, Damage::DeepBase { parent: *parent }))
        }
        Some(LayerRow { id, parent: Some(parent), .. }) => {
            Err(damaged(*id, Damage::BrokenParent { parent: *parent }))
        }
        Some(LayerRow { id, depth, parent: None, .. }) if *depth > 0 => {
            Err(damaged(*id, Damage::Rootless { depth: *depth }))
        }
        _ => Ok(()),
    }
}

fn damaged(layer: LayerId, problem: Damage) -> CatalogError {
    CatalogError::Damaged { layer, problem }
}

impl Catalog {
    /// The layer with that id, if it exists.
    pub fn layer(&self, id: LayerId) -> Result<Option<LayerRow>, CatalogError> {
        self.read(|connection| find(connection, id))
    }

    /// All layers from `head` down to its base, `head` first.
    ///
    /// Each step must go one level down, so neither a cycle nor a gap goes unnoticed.
    pub fn chain(&self, head: LayerId) -> Result<Vec<LayerRow>, CatalogError> {
        let chain: Vec<LayerRow> = self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "WITH RECURSIVE chain (id, parent, depth, state, used, adopted_from, created_ms) AS (
                     SELECT id, parent, depth, state, used, adopted_from, created_ms
                     FROM layers WHERE id = ?
                     UNION ALL
                     SELECT l.id, l.parent, l.depth, l.state, l.used, l.adopted_from, l.created_ms
                     FROM chain c JOIN layers l ON l.id = c.parent AND l.depth = c.depth - 1)
                 SELECT id, parent, depth, state, used, adopted_from, created_ms
                 FROM chain ORDER BY depth DESC",
            )?;
            let rows = statement.query_map([head.0], from_row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })?;
        if chain.is_empty() {
            return Err(CatalogError::LayerNotFound { layer: head });
        }
        prove_chain(&chain)?;
        Ok(chain)
    }

    /// How many sealed layers stand on each layer below `top` down to `lowest_depth`, the newest first: 1 where
    /// only the chain of `top` goes on.
    pub fn sharers(&self, top: LayerId, lowest_depth: u32) -> Result<Vec<u32>, CatalogError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "WITH RECURSIVE chain (id, parent, depth) AS (
                     SELECT id, parent, depth FROM layers WHERE id = ?1
                     UNION ALL
                     SELECT l.id, l.parent, l.depth FROM chain c JOIN layers l
                     ON l.id = c.parent AND l.depth = c.depth - 1 AND l.depth >= ?2)
                 SELECT (SELECT COUNT(*) FROM layers a WHERE a.parent = chain.id AND a.state = 'sealed')
                 FROM chain WHERE id <> ?1 ORDER BY depth DESC",
            )?;
            let rows = statement.query_map((top.0, lowest_depth), |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Every layer, in no particular order.
    pub fn all_layers(&self) -> Result<Vec<LayerRow>, CatalogError> {
        self.read(|connection| {
            let sql = format!("SELECT {COLUMNS} FROM layers");
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement.query_map([], from_row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// The layers in the chain of any branch or snapshot, also of deleted ones.
    ///
    /// A layer outside this set stays outside for good, unless an import is filling it: a new
    /// layer only ever stands on one that is reachable already.
    pub fn reachable_layers(&self) -> Result<HashSet<LayerId>, CatalogError> {
        self.read(reachable)
    }

    /// Notes, durably, that the layer is about to be written to and has a directory.
    ///
    /// Idempotent. Not a change that somebody asked for, so the operation log does not show it.
    pub fn mark_layer_used(&self, id: LayerId) -> Result<(), CatalogError> {
        self.write(|transaction| {
            let changed = transaction
                .prepare_cached("UPDATE layers SET used = 1 WHERE id = ? AND used = 0")?
                .execute([id.0])?;
            if changed == 0 {
                require(transaction, id)?;
            }
            Ok(())
        })
    }

    /// Removes the rows of layers that no branch reaches; the caller has removed their contents.
    ///
    /// Layers that are reachable after all are left alone. Returns how many rows went.
    pub fn remove_layers(&self, ids: &[LayerId]) -> Result<usize, CatalogError> {
        self.write(|transaction| {
            let reachable = reachable(transaction)?;
            let mut doomed = Vec::new();
            for id in ids.iter().filter(|id| !reachable.contains(id)) {
                doomed.extend(find(transaction, *id)?);
            }
            // From the top down: a layer's row cannot go while another one names it as parent.
            doomed.sort_by_key(|row| std::cmp::Reverse(row.depth));
            let mut delete = transaction.prepare_cached("DELETE FROM layers WHERE id = ?")?;
            for row in &doomed {
                delete.execute([row.id.0])?;
            }
            if !doomed.is_empty() {
                let detail = format!("removed {}", counted(doomed.len(), "layer"));
                oplog::record(transaction, Actor::process("gc"), None, &detail)?;
            }
            Ok(doomed.len())
        })
    }

    /// Adds a base layer that an import is about to fill. The caller holds its import lock.
    pub fn begin_import(
        &self,
        layer: LayerId,
        adopted_from: Option<&Path>,
    ) -> Result<(), CatalogError> {
        self.write(|transaction| {
            let new = NewLayer { id: layer, parent: None };
            insert(transaction, new, LayerState::Importing, true, adopted_from)?;
            let detail = format!("import into layer {} began", layer.dir_name());
            oplog::record(transaction, Actor::process("import"), None, &detail)
        })
    }

    /// Seals an imported layer and puts a branch with the open layer `head` on top of it.
    pub fn finish_import(
        &self,
        layer: LayerId,
        head: LayerId,
        new: &NewBranch,
    ) -> Result<BranchRow, CatalogError> {
        self.write(|transaction| {
            require_state(transaction, layer, LayerState::Importing)?;
            set_state(transaction, layer, LayerState::Sealed)?;
            let top = NewLayer { id: head, parent: Some(layer) };
            insert(transaction, top, LayerState::Open, false, None)?;
            let row = branches::insert(transaction, new, None, head, false)?;
            let actor = Actor { uid: new.uid, command: &new.command };
            let detail =
                format!("branch {} on layer {} from {}", row.id, layer.dir_name(), row.origin);
            oplog::record(transaction, actor, Some(row.name.as_str()), &detail)?;
            Ok(row)
        })
    }

    /// Forgets a layer whose import came to nothing; the caller has removed its contents.
    pub fn abort_import(&self, layer: LayerId) -> Result<(), CatalogError> {
        self.write(|transaction| {
            require_state(transaction, layer, LayerState::Importing)?;
            transaction.prepare_cached("DELETE FROM layers WHERE id = ?")?.execute([layer.0])?;
            let detail = format!("import into layer {} given up", layer.dir_name());
            oplog::record(transaction, Actor::process("import"), None, &detail)
        })
    }
}

pub(super) fn reachable(connection: &Connection) -> Result<HashSet<LayerId>, CatalogError> {
    let mut statement = connection.prepare_cached(
        "WITH RECURSIVE reached (id) AS (
             SELECT layer FROM roots
             UNION
             SELECT l.parent FROM reached r JOIN layers l ON l.id = r.id
             WHERE l.parent IS NOT NULL)
         SELECT id FROM reached",
    )?;
    let rows = statement.query_map([], |row| row.get(0).map(LayerId))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

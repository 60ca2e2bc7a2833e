//! Ownership resolved over a stack of layers, against a slow answer; up to the last granule.

use arbitrary::{Arbitrary, Unstructured};
use cowfs::format::{FileLayout, Granule, Ino, LayerId, OwnedRun};
use cowfs::layer::owner_map::OwnerMapBuilder;

#[derive(Arbitrary, Debug)]
struct Layer {
    private: bool,
    floor: Option<Granule>,
    /// Gap before the run, its length, first granule of the data file.
    runs: Vec<(Granule, u32, Granule)>,
}

/// One input.
pub fn run(data: &[u8]) {
    let Ok(stack) = <Vec<Layer>>::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let stack: Vec<FileLayout> = (1..).zip(&stack).map(|(id, layer)| layout(id, layer)).collect();
    let mut builder = OwnerMapBuilder::default();
    for layer in &stack {
        builder.layer(layer.private, layer.floor, layer.runs.iter().copied());
    }
    let map = builder.finish();
    assert!(map.self_check());
    let edges = stack.iter().flat_map(|layer| {
        let runs = layer.runs.iter().flat_map(|run| [run.start, run.start + run.len]);
        runs.chain([layer.floor])
    });
    for edge in edges.chain([0, Granule::MAX - 1]) {
        for granule in [edge.saturating_sub(1), edge].into_iter().filter(|g| *g < Granule::MAX) {
            let (found, end) = map.at(granule, Granule::MAX);
            assert!(end > granule);
            let place = |run: OwnedRun| (run.layer, run.source + (granule - run.start));
            assert_eq!(found.map(place), owner(&stack, granule).map(place), "granule {granule}");
        }
    }
}

/// A layout as an index or a journal may hold it: runs that would not pass are left out.
fn layout(id: u64, layer: &Layer) -> FileLayout {
    let mut layout = FileLayout {
        private: layer.private,
        floor: layer.floor.unwrap_or(Granule::MAX),
        runs: Vec::new(),
    };
    let mut at = 0_u32;
    for (gap, len, source) in &layer.runs {
        let Some(start) = at.checked_add(*gap) else { break };
        let run = OwnedRun { start, len: *len, layer: LayerId(id), file: Ino(7), source: *source };
        layout.runs.push(run);
        if !layout.self_check() {
            layout.runs.pop();
            continue;
        }
        at = start + len;
    }
    layout
}

fn owner(stack: &[FileLayout], granule: Granule) -> Option<OwnedRun> {
    for layer in stack {
        let run = layer.runs.iter().find(|r| (r.start..r.start + r.len).contains(&granule));
        if run.is_some() || layer.private || granule >= layer.floor {
            return run.copied();
        }
    }
    None
}

//! Operations by name, as jobs run and plans rehearse them.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::convert::NEEDS;
use super::guard::argument;
use super::io::Need;
use super::ops::merge_needs;
use super::surgery::DELETE_NEEDS;
use crate::chain::Chain;
use crate::error::Result;
use crate::ops::{self, DigestAlgorithm};
use crate::options::ProgressFn;
use crate::schema::{JobOptions, Kind, Settings};

/// One of them.
pub(super) struct Operation {
    pub(super) kind: Kind,
    /// Its keys of "job".
    keys: &'static [&'static str],
    pub(super) needs: fn(&Settings) -> Vec<Need>,
    /// Its report.
    pub(super) run: fn(&Chain, &Settings, ProgressFn<'_>) -> Result<Value>,
}

/// A report. Its members are numbers and text, which always have a form.
fn json(report: impl serde::Serialize) -> Value {
    serde_json::to_value(report).unwrap_or_default()
}

const WRITE: fn(&Settings) -> Vec<Need> = |_| vec![Need::Write];

static OPERATIONS: &[Operation] = &[
    Operation {
        kind: Kind::Merge,
        keys: &["top", "base"],
        needs: |s| merge_needs(&s.merge),
        run: |chain, s, progress| {
            let top = s.job.top.unwrap_or(0);
            let base = s.job.base.unwrap_or(top.saturating_add(1));
            ops::merge(chain, top, base, &s.merge, progress).map(json)
        },
    },
    Operation {
        kind: Kind::Delete,
        keys: &["top"],
        needs: |_| DELETE_NEEDS.to_vec(),
        run: |chain, s, progress| {
            let layer = s.job.top.unwrap_or(0);
            ops::delete_layer(chain, layer, &s.delete, progress).map(json)
        },
    },
    Operation {
        kind: Kind::Rebase,
        keys: &["onto"],
        needs: WRITE,
        run: |chain, s, progress| {
            let parent = needed(&s.job.onto, "rebase", "onto")?;
            ops::rebase(chain, parent, &s.rebase, progress).map(json)
        },
    },
    Operation {
        kind: Kind::Detach,
        keys: &[],
        needs: WRITE,
        run: |chain, s, progress| ops::detach(chain, &s.rebase, progress).map(json),
    },
    Operation {
        kind: Kind::Convert,
        keys: &["out"],
        needs: |_| NEEDS.to_vec(),
        run: |chain, s, progress| {
            let out = needed(&s.job.out, "convert", "out")?;
            ops::convert(chain, out, &s.convert, progress).map(json)
        },
    },
    Operation {
        kind: Kind::Compact,
        keys: &[],
        needs: WRITE,
        run: |chain, s, progress| ops::compact(chain, &s.compact, progress).map(json),
    },
    Operation {
        kind: Kind::Digest,
        keys: &["top", "algorithm"],
        needs: |_| Vec::new(),
        run: |chain, s, progress| {
            let algorithm = s.job.algorithm.unwrap_or(DigestAlgorithm::Sha256);
            let digest = ops::digest(chain, s.job.top.unwrap_or(0), algorithm, &s.digest, progress)?;
            let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            Ok(serde_json::json!({ "algorithm": algorithm.name(), "digest": digest }))
        },
    },
];

fn needed<'a>(path: &'a Option<PathBuf>, name: &str, key: &str) -> Result<&'a Path> {
    path.as_deref().ok_or_else(|| {
        argument(format!("{name:?} without the option '{key}'")).with_hint(format!("set '{key}' to a path"))
    })
}

impl Operation {
    /// The operation of this name.
    pub(super) fn find(name: &str) -> Result<&'static Operation> {
        OPERATIONS
            .iter()
            .find(|operation| operation.kind.name() == name)
            .ok_or_else(|| {
                let names: Vec<&str> = OPERATIONS.iter().map(|operation| operation.kind.name()).collect();
                argument(format!("there is no operation {name:?}"))
                    .with_hint(format!("the operations are: {}", names.join(", ")))
            })
    }

    /// Refuses keys of "job" that are for other operations, and asks for what this one cannot do without.
    pub(super) fn check_keys(&self, job: &JobOptions) -> Result<()> {
        let set = [
            ("top", job.top.is_some()),
            ("base", job.base.is_some()),
            ("onto", job.onto.is_some()),
            ("out", job.out.is_some()),
            ("algorithm", job.algorithm.is_some()),
        ];
        let name = self.kind.name();
        if let Some((key, _)) = set.iter().find(|(key, is_set)| *is_set && !self.keys.contains(key)) {
            let message = format!("the option '{key}' is not for {name:?}");
            return Err(argument(message).with_hint("leave it out here"));
        }
        for (key, path) in [("onto", &job.onto), ("out", &job.out)] {
            if self.keys.contains(&key) {
                needed(path, name, key)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_jobs_are_no_keys_of_their_operations() {
        let job: Vec<&str> = Kind::Job.keys().iter().map(|key| key.name).collect();
        for operation in OPERATIONS {
            assert!(operation.keys.iter().all(|key| job.contains(key)));
            for key in operation.kind.keys() {
                assert!(
                    !operation.keys.contains(&key.name),
                    "{}: {}",
                    operation.kind.name(),
                    key.name
                );
            }
        }
        for key in job {
            assert!(
                OPERATIONS.iter().any(|operation| operation.keys.contains(&key)),
                "{key}"
            );
        }
    }
}

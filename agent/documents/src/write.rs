//! YAML out (`-o yaml`). The only module that knows serde_yaml.
//!
//! Reading does not go through it: serde_yaml stops at the first fault and knows no place for the typed ones.

use serde::Serialize;
use serde_json::Value;

use crate::document::{API_VERSION, Kind};
use crate::set::Set;

/// A value that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// It holds what JSON's model cannot, such as a map with keys that are not text.
    #[error("the value has no JSON form: {0}")]
    Value(#[from] serde_json::Error),
    /// The YAML writer refused it.
    #[error("the value has no YAML form: {0}")]
    Yaml(#[from] serde_yaml::Error),
}

/// Any serializable value as YAML, in the order of its fields; absent values (`null`) are left out.
///
/// # Errors
/// Where the value has no JSON or YAML form.
pub fn to_yaml<T: Serialize>(value: &T) -> Result<String, WriteError> {
    let mut value = serde_yaml::to_value(value)?;
    drop_absent(&mut value);
    let text = serde_yaml::to_string(&value)?;
    // The writer takes these three for line breaks and folds at them; to YAML 1.2 and its readers they are text. JSON is
    // YAML too, and says them without folding.
    if text.contains(['\u{85}', '\u{2028}', '\u{2029}']) {
        return Ok(serde_json::to_string_pretty(&value)? + "\n");
    }
    Ok(text)
}

fn drop_absent(value: &mut serde_yaml::Value) {
    match value {
        serde_yaml::Value::Mapping(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_absent);
        }
        serde_yaml::Value::Sequence(list) => list.iter_mut().for_each(drop_absent),
        _ => {}
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Whole<'a> {
    api_version: &'static str,
    kind: Kind,
    metadata: &'a Value,
    spec: &'a Value,
}

impl Set {
    /// Every document as YAML, one after the other, so that [`crate::check`] reads the same set again.
    ///
    /// # Errors
    /// Where a document has no YAML form.
    pub fn to_yaml(&self) -> Result<String, WriteError> {
        let mut out = String::new();
        for kind in Kind::ALL {
            for document in self.values(kind).values() {
                let (metadata, spec) = (&document["metadata"], &document["spec"]);
                out.push_str("---\n");
                out.push_str(&to_yaml(&Whole {
                    api_version: API_VERSION,
                    kind,
                    metadata,
                    spec,
                })?);
            }
        }
        Ok(out)
    }
}

use std::fmt;

use serde_json::Value;

/// One step into a document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Into a mapping, by its key.
    Key(String),
    /// Into a sequence, by its index, from 0.
    Index(usize),
}

/// Where a value stands in a document, shown as kOps' own messages do: `spec.subnets[0].name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldPath(pub(crate) Vec<Step>);

impl FieldPath {
    /// A path of mapping keys only.
    pub fn keys(keys: &[&str]) -> Self {
        Self(keys.iter().map(|key| Step::Key((*key).into())).collect())
    }

    /// The steps from the document's root.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// The value at this path, if it is there.
    pub fn get<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        self.0.iter().try_fold(value, |value, step| match step {
            Step::Key(key) => value.get(key),
            Step::Index(index) => value.get(index),
        })
    }

    pub(crate) fn get_mut<'v>(&self, value: &'v mut Value) -> Option<&'v mut Value> {
        self.0.iter().try_fold(value, |value, step| match step {
            Step::Key(key) => value.get_mut(key),
            Step::Index(index) => value.get_mut(index),
        })
    }

    pub(crate) fn child(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// The path one step up and the last step; none for the root.
    pub(crate) fn split_last(&self) -> Option<(Self, &Step)> {
        let (last, parents) = self.0.split_last()?;
        Some((Self(parents.to_vec()), last))
    }

    pub(crate) fn last_key(&self) -> Option<&str> {
        match self.0.last()? {
            Step::Key(key) => Some(key),
            Step::Index(_) => None,
        }
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                // A label's key has dots of its own.
                Step::Key(key) if key.contains(['.', '/']) => write!(f, "[{key}]")?,
                Step::Key(key) if position == 0 => write!(f, "{key}")?,
                Step::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shows_as_kops_does() {
        let path = FieldPath(vec![Step::Key("spec".into()), Step::Key("subnets".into()), Step::Index(1), Step::Key("name".into())]);
        assert_eq!(path.to_string(), "spec.subnets[1].name");
        let label = FieldPath::keys(&["metadata", "labels", "kops.k8s.io/cluster"]);
        assert_eq!(label.to_string(), "metadata.labels[kops.k8s.io/cluster]");
    }

    #[test]
    fn finds_values() {
        let value = json!({"spec": {"subnets": [{"name": "a"}, {"name": "b"}]}});
        let path = FieldPath(vec![Step::Key("spec".into()), Step::Key("subnets".into()), Step::Index(1), Step::Key("name".into())]);
        assert_eq!(path.get(&value), Some(&json!("b")));
        assert_eq!(FieldPath::keys(&["spec", "zones"]).get(&value), None);
    }
}

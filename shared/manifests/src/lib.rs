//! kOps manifests: splitting, strict checks, meaning, and the change of a registry.

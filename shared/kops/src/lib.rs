//! The pinned kops binary: fetched, verified, cached, run in isolation.

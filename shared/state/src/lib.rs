//! Objects in S3: the kOps state store, the run's record, the cluster's lock.

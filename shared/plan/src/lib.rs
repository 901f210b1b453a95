//! The plan: kOps' dry run parsed, made stable, redacted, digested and reported.

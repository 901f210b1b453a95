//! GitLab: deliveries and their verification, sources at a commit, reports.

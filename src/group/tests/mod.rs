//! Stories of groups, and random walks.

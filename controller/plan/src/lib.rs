//! controller/plan

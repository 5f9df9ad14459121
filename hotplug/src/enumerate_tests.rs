//! Tests of `enumerate`.

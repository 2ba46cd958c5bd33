//! The OpenAPI description, generated.

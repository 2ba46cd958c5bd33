//! How a subscription's saved state has the paths of streams: as their texts.

/// A list of paths.
pub(super) mod many {
    use bourn_protocol::StreamPath;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(paths: &[StreamPath], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(paths.iter().map(StreamPath::as_str))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<StreamPath>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|text| StreamPath::new(text).map_err(serde::de::Error::custom)).collect()
    }
}

/// A path that may be absent.
pub(super) mod maybe {
    use bourn_protocol::StreamPath;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[allow(clippy::ref_option, reason = "serde calls it so")]
    pub(in super::super) fn serialize<S: Serializer>(
        path: &Option<StreamPath>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        path.as_ref().map(StreamPath::as_str).serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<StreamPath>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| StreamPath::new(&text).map_err(serde::de::Error::custom)).transpose()
    }
}

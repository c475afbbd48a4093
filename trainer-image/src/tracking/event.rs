//! Event files of TensorBoard: the messages of `event.proto` and `summary.proto`, as far as they are used, in records as
//! TensorFlow frames them. Pure.
//!
//! Sources: `tensorboard/compat/proto/{event,summary,tensor,tensor_shape}.proto` and `tensorflow/core/lib/io/record_writer.h`.

use prost::Message;

/// The version in the first event of a file. From 2 on, a session that starts at a step replaces later ones.
const VERSION: &str = "brain.Event:2";
/// `SessionLog.SessionStatus.START`.
const START: i32 = 1;
/// `DataType.DT_STRING`.
const STRING: i32 = 7;
/// Is added to rotated checksums, so that the checksum of data with checksums in it is no constant.
const MASK: u32 = 0xa282_ead8;

/// Something that happened at a step.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Event {
    /// Seconds since 1970-01-01T00:00:00Z.
    #[prost(double, tag = "1")]
    pub(super) wall_time: f64,
    /// Optimizer steps done.
    #[prost(int64, tag = "2")]
    pub(super) step: i64,
    /// What happened.
    #[prost(oneof = "What", tags = "3, 5, 7")]
    pub(super) what: Option<What>,
}

/// What happened.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum What {
    /// The file begins.
    #[prost(string, tag = "3")]
    FileVersion(String),
    /// Values were measured.
    #[prost(message, tag = "5")]
    Summary(Summary),
    /// A session began.
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

/// The state of a session.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SessionLog {
    #[prost(int32, tag = "1")]
    pub(super) status: i32,
}

/// Values.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub(super) value: Vec<Value>,
}

/// A value with its tag.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Value {
    #[prost(string, tag = "1")]
    pub(super) tag: String,
    #[prost(message, optional, tag = "9")]
    pub(super) metadata: Option<Metadata>,
    #[prost(oneof = "Content", tags = "2, 8")]
    pub(super) content: Option<Content>,
}

/// The content of a value.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Content {
    /// A scalar.
    #[prost(float, tag = "2")]
    Scalar(f32),
    /// A tensor.
    #[prost(message, tag = "8")]
    Tensor(Tensor),
}

/// How a value is shown.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Metadata {
    #[prost(message, optional, tag = "1")]
    pub(super) plugin: Option<Plugin>,
}

/// The plugin that shows a value.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Plugin {
    #[prost(string, tag = "1")]
    pub(super) name: String,
}

/// A tensor of strings.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Tensor {
    #[prost(int32, tag = "1")]
    pub(super) dtype: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) shape: Option<Shape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub(super) strings: Vec<Vec<u8>>,
}

/// The shape of a tensor.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Shape {
    #[prost(message, repeated, tag = "2")]
    pub(super) sizes: Vec<Size>,
}

/// The size of a dimension.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Size {
    #[prost(int64, tag = "1")]
    pub(super) size: i64,
}

impl Event {
    /// Returns the first event of a file.
    pub(super) fn version(wall_time: f64) -> Self {
        Self { wall_time, step: 0, what: Some(What::FileVersion(VERSION.to_owned())) }
    }

    /// Returns the start of a session. Values of this step and of later ones that were written before are void.
    pub(super) fn session(wall_time: f64, step: u64) -> Self {
        Self { wall_time, step: step.cast_signed(), what: Some(What::SessionLog(SessionLog { status: START })) }
    }

    /// Returns a measured number, which is rounded to single precision.
    pub(super) fn scalar(wall_time: f64, step: u64, tag: String, value: f64) -> Self {
        let value = Value { tag, metadata: None, content: Some(Content::Scalar(value as f32)) };
        Self { wall_time, step: step.cast_signed(), what: Some(What::Summary(Summary { value: vec![value] })) }
    }

    /// Returns a text in Markdown.
    pub(super) fn text(wall_time: f64, step: u64, tag: String, text: String) -> Self {
        let shape = Some(Shape { sizes: vec![Size { size: 1 }] });
        let tensor = Tensor { dtype: STRING, shape, strings: vec![text.into_bytes()] };
        let metadata = Some(Metadata { plugin: Some(Plugin { name: "text".to_owned() }) });
        let value = Value { tag, metadata, content: Some(Content::Tensor(tensor)) };
        Self { wall_time, step: step.cast_signed(), what: Some(What::Summary(Summary { value: vec![value] })) }
    }

    /// Appends the event as a record: the length and its masked checksum, the data and its masked checksum, in little-endian order.
    pub(super) fn append_to(&self, file: &mut Vec<u8>) {
        let data = self.encode_to_vec();
        let length = (data.len() as u64).to_le_bytes();
        file.extend_from_slice(&length);
        file.extend_from_slice(&masked_checksum(&length).to_le_bytes());
        file.extend_from_slice(&data);
        file.extend_from_slice(&masked_checksum(&data).to_le_bytes());
    }
}

/// Returns the masked CRC-32C of bytes.
pub(super) fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(MASK)
}

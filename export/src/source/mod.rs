//! A checkpoint as the emitters read it: its tensors (`tensors`), its query adapter (`adapter`), the LLM as a whole (`llm`),
//! the keys and values of its prompt (`prefix`), the tokenizer's fit (`tokenizer`), and a student that passed all checks
//! which need no weights (`student`).

pub mod adapter;
pub mod llm;
pub mod prefix;
pub mod student;
pub mod tensors;
pub mod tokenizer;

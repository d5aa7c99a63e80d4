//! What makes two questions the same: every part of a user and of what it asks for, in one
//! unambiguous row of bytes. Each text goes with its length before it and each list with its count, so
//! that no part can pass for another. The bytes are for a keyed digest, and are not kept.

use crate::model::attributes::{Attributes, Selection};
use crate::model::selector::SelectorRequirement;
use crate::model::user::User;

/// Takes bytes, and counts those of texts.
pub struct Sink<'a> {
    take: &'a mut dyn FnMut(&[u8]),
    bytes: usize,
}

impl<'a> Sink<'a> {
    /// Hands everything to `take`.
    pub fn new(take: &'a mut dyn FnMut(&[u8])) -> Self {
        Self { take, bytes: 0 }
    }

    /// Bytes of texts so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn count(&mut self, count: usize) {
        (self.take)(&u64::try_from(count).unwrap_or(u64::MAX).to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        (self.take)(text.as_bytes());
        self.bytes += text.len();
    }

    fn texts(&mut self, texts: &[String]) {
        self.count(texts.len());
        for text in texts {
            self.text(text);
        }
    }

    /// A user.
    pub fn user(&mut self, user: &User) {
        self.text(&user.name);
        self.text(&user.uid);
        self.texts(&user.groups);
        self.count(user.extra.len());
        for (key, values) in &user.extra {
            self.text(key);
            self.texts(values);
        }
    }

    /// What a user asks for. Of a resource the path does not count, which the reviewer does not hear.
    pub fn attributes(&mut self, asked: &Attributes<'_>) {
        self.text(&asked.verb);
        if !asked.is_resource {
            self.count(0);
            return self.text(asked.path);
        }
        self.count(1);
        for text in [asked.group, asked.version, asked.namespace] {
            self.text(text);
        }
        for text in [asked.resource, asked.subresource, asked.name] {
            self.text(text);
        }
        if let Some(Selection { fields, labels, name: _ }) = asked.selection {
            self.requirements(fields);
            self.requirements(labels);
        }
    }

    fn requirements(&mut self, requirements: &[SelectorRequirement]) {
        self.count(requirements.len());
        for SelectorRequirement { key, operator, values } in requirements {
            self.text(key);
            self.text(operator);
            self.texts(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(user: &User, asked: &Attributes<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut take = |part: &[u8]| bytes.extend_from_slice(part);
        let mut sink = Sink::new(&mut take);
        sink.user(user);
        sink.attributes(asked);
        bytes
    }

    fn users() -> impl Strategy<Value = User> {
        let texts = || prop::collection::vec("[ab]{0,2}", 0..3);
        let extra = prop::collection::btree_map("[ab]{0,2}", texts(), 0..3);
        ("[ab]{0,2}", "[ab]{0,2}", texts(), extra).prop_map(|(name, uid, groups, extra)| User {
            name,
            uid,
            groups,
            extra,
        })
    }

    proptest! {
        #[test]
        fn different_questions_never_have_the_same_bytes(
            users in (users(), users()),
            texts in prop::array::uniform8("[ab/]{0,2}"),
            resources in any::<(bool, bool)>(),
        ) {
            let [a, b, c, d, e, f, g, h] = texts;
            let one = (resources.0, [a, b, c, d]);
            let two = (resources.1, [e, f, g, h]);
            // Of a path only verb and path are told.
            let told = |(is_resource, parts): &(bool, [String; 4])| {
                let count = if *is_resource { parts.len() } else { 2 };
                (*is_resource, parts[..count].to_vec())
            };
            let bytes = |user: &User, (is_resource, [verb, x, y, z]): &(bool, [String; 4])| {
                let asked = Attributes {
                    verb: verb.as_str().into(),
                    is_resource: *is_resource,
                    path: x,
                    resource: x,
                    subresource: y,
                    name: z,
                    ..Attributes::default()
                };
                of(user, &asked)
            };
            let same = users.0 == users.1 && told(&one) == told(&two);
            prop_assert_eq!(bytes(&users.0, &one) == bytes(&users.1, &two), same);
        }
    }

    #[test]
    fn what_narrows_a_request_makes_it_another_one() {
        let fields = vec![SelectorRequirement {
            key: "metadata.name".to_owned(),
            operator: "NotIn",
            values: vec!["a".to_owned()],
        }];
        let by_field = Selection { fields: fields.clone(), ..Selection::default() };
        let by_label = Selection { labels: fields, ..Selection::default() };
        let asked =
            |selection| Attributes { is_resource: true, selection, ..Attributes::default() };
        let user = User::default();
        let all = of(&user, &asked(None));
        assert_ne!(all, of(&user, &asked(Some(&by_field))));
        assert_ne!(of(&user, &asked(Some(&by_label))), of(&user, &asked(Some(&by_field))));
    }

    #[test]
    fn the_bytes_of_all_texts_are_counted() {
        let mut take = |_: &[u8]| {};
        let mut sink = Sink::new(&mut take);
        let user = User { name: "ab".to_owned(), groups: vec!["c".to_owned()], ..User::default() };
        sink.user(&user);
        sink.attributes(&Attributes { verb: "get".into(), path: "/x", ..Attributes::default() });
        assert_eq!(sink.bytes(), 8);
    }
}

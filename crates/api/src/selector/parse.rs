//! The grammar of label selectors. A lexer and a recursive-descent parser without recursion: requirements do not nest.

use super::{Operator, Requirement, SelectorError};
use crate::names;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    End,
    Error,
    Open,
    Close,
    Comma,
    Not,
    Equals,
    NotEquals,
    Greater,
    Less,
    In,
    NotIn,
    Word,
}

const SYMBOLS: [(&str, Token); 9] = [
    ("==", Token::Equals),
    ("!=", Token::NotEquals),
    ("=", Token::Equals),
    ("!", Token::Not),
    ("(", Token::Open),
    (")", Token::Close),
    (",", Token::Comma),
    (">", Token::Greater),
    ("<", Token::Less),
];

fn is_symbol(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

struct Parser<'a> {
    rest: &'a str,
    /// Token already scanned but not consumed.
    peeked: Option<(Token, &'a str)>,
}

type Scanned<'a> = (Token, &'a str);

impl<'a> Parser<'a> {
    fn scan(&mut self) -> Scanned<'a> {
        self.rest = self.rest.trim_start_matches(is_blank);
        // A NUL ends the text, as in the original.
        let Some(first) = self.rest.chars().next().filter(|c| *c != '\0') else {
            return (Token::End, "");
        };
        let (token, length) = if is_symbol(first) {
            SYMBOLS
                .iter()
                .find(|(text, _)| self.rest.starts_with(text))
                .map_or((Token::Error, first.len_utf8()), |(text, token)| (*token, text.len()))
        } else {
            let end = |c: char| is_symbol(c) || is_blank(c) || c == '\0';
            let length = self.rest.find(end).unwrap_or(self.rest.len());
            let token = match &self.rest[..length] {
                "in" => Token::In,
                "notin" => Token::NotIn,
                _ => Token::Word,
            };
            (token, length)
        };
        let (text, rest) = self.rest.split_at(length);
        self.rest = rest;
        (token, text)
    }

    fn peek_operator(&mut self) -> Scanned<'a> {
        if let Some(peeked) = self.peeked {
            return peeked;
        }
        let scanned = self.scan();
        self.peeked = Some(scanned);
        scanned
    }

    /// The next token where `in` and `notin` are words like others.
    fn peek(&mut self) -> Scanned<'a> {
        match self.peek_operator() {
            (Token::In | Token::NotIn, text) => (Token::Word, text),
            other => other,
        }
    }

    fn next_operator(&mut self) -> Scanned<'a> {
        let scanned = self.peek_operator();
        self.peeked = None;
        scanned
    }

    fn next(&mut self) -> Scanned<'a> {
        let scanned = self.peek();
        self.peeked = None;
        scanned
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let (mut token, mut key) = self.next();
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.next();
        }
        if token != Token::Word {
            return error(format!("found '{key}', expected: identifier"));
        }
        let bad = names::qualified_name(key);
        if !bad.is_empty() {
            return error(format!("<nil>: Invalid value: {}: {}", super::quoted(key), bad.join("; ")));
        }
        let key = key.to_owned();
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Requirement::new(key, Operator::Exists, Vec::new());
        }
        let (token, text) = self.next_operator();
        let operator = match token {
            Token::In => Operator::In,
            Token::NotIn => Operator::NotIn,
            Token::Equals => Operator::Equals,
            Token::NotEquals => Operator::NotEquals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            _ => return error(format!("found '{text}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(key, operator, values)
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.next() {
            (Token::Word, text) => Ok(text.to_owned()),
            (_, text) => error(format!("found '{text}', expected: identifier")),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        let (token, text) = self.next();
        if token != Token::Open {
            return error(format!("found '{text}' expected: '('"));
        }
        let (token, text) = self.peek();
        match token {
            Token::Close => {
                self.next();
                return Ok(vec![String::new()]);
            }
            Token::Word | Token::Comma => {}
            _ => return error(format!("found '{text}', expected: ',', ')' or identifier")),
        }
        let mut values = Vec::new();
        loop {
            match self.next() {
                (Token::Word, text) => {
                    values.push(text.to_owned());
                    match self.peek() {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => break,
                        (_, text) => return error(format!("found '{text}', expected: ',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    // Nothing before, or nothing behind the comma stands for the empty value.
                    if values.is_empty() {
                        values.push(String::new());
                    }
                    match self.peek().0 {
                        Token::Close => {
                            values.push(String::new());
                            break;
                        }
                        Token::Comma => values.push(String::new()),
                        _ => {}
                    }
                }
                (_, text) => return error(format!("found '{text}', expected: ',', or identifier")),
            }
        }
        self.next();
        Ok(values)
    }
}

pub(super) fn requirements(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut parser = Parser { rest: text, peeked: None };
    let mut requirements = Vec::new();
    loop {
        match parser.peek() {
            (Token::Word | Token::Not, _) => {}
            (Token::End, _) => return Ok(requirements),
            (_, text) => {
                return error(format!("found '{text}', expected: !, identifier, or 'end of string'"));
            }
        }
        let requirement = parser.requirement();
        requirements
            .push(requirement.map_err(|e| SelectorError(format!("unable to parse requirement: {e}")))?);
        match parser.next() {
            (Token::End, _) => return Ok(requirements),
            (Token::Comma, _) => {
                let (token, text) = parser.peek();
                if !matches!(token, Token::Word | Token::Not) {
                    return error(format!("found '{text}', expected: identifier after ','"));
                }
            }
            (_, text) => return error(format!("found '{text}', expected: ',' or 'end of string'")),
        }
    }
}

fn error<T>(message: String) -> Result<T, SelectorError> {
    Err(SelectorError(message))
}

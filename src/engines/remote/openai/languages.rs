//! Names of languages as the protocol tells them in a detailed transcript, and the codes that we use.

/// In the order of Whisper, which is where the names come from.
const LANGUAGES: &str = "english en chinese zh german de spanish es russian ru korean ko french fr japanese ja portuguese pt \
    turkish tr polish pl catalan ca dutch nl arabic ar swedish sv italian it indonesian id hindi hi finnish fi \
    vietnamese vi hebrew he ukrainian uk greek el malay ms czech cs romanian ro danish da hungarian hu tamil ta \
    norwegian no thai th urdu ur croatian hr bulgarian bg lithuanian lt latin la maori mi malayalam ml welsh cy \
    slovak sk telugu te persian fa latvian lv bengali bn serbian sr azerbaijani az slovenian sl kannada kn \
    estonian et macedonian mk breton br basque eu icelandic is armenian hy nepali ne mongolian mn bosnian bs \
    kazakh kk albanian sq swahili sw galician gl marathi mr punjabi pa sinhala si khmer km shona sn yoruba yo \
    somali so afrikaans af occitan oc georgian ka belarusian be tajik tg sindhi sd gujarati gu amharic am \
    yiddish yi lao lo haitian_creole ht uzbek uz faroese fo pashto ps turkmen tk nynorsk nn maltese mt sanskrit sa \
    luxembourgish lb myanmar my tibetan bo tagalog tl malagasy mg assamese as tatar tt hawaiian haw lingala ln \
    hausa ha bashkir ba javanese jw sundanese su cantonese yue";

/// The code of a name or of a code. What is neither is no language.
pub(super) fn code(name: &str) -> Option<String> {
    let name = name.trim().to_lowercase().replace(' ', "_");
    let words: Vec<&str> = LANGUAGES.split_whitespace().collect();
    let pairs = words.chunks_exact(2);
    let code = pairs.map(|pair| (pair[0], pair[1])).find(|(long, code)| *long == name || *code == name)?.1;
    Some(code.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_codes_become_codes() {
        assert_eq!(code("Spanish").as_deref(), Some("es"));
        assert_eq!(code("es").as_deref(), Some("es"));
        assert_eq!(code("Haitian Creole").as_deref(), Some("ht"));
        assert_eq!(code("cantonese").as_deref(), Some("yue"));
        assert_eq!(code("klingon"), None);
        assert_eq!(LANGUAGES.split_whitespace().count(), 200);
    }
}

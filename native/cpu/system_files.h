#pragma once
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

// Files in which Linux reports about the system and about control groups.
namespace st_moe::cpu {

// What follows `key` on the first line that starts with it; without a key the first line. Empty if there is none.
inline std::string text_in(const char* path, const char* key = "") {
  std::string text;
  std::FILE* file = std::fopen(path, "re");
  if (!file) return text;
  char line[256];
  const size_t skip = std::strlen(key);
  while (text.empty() && std::fgets(line, sizeof line, file))
    if (std::strncmp(line, key, skip) == 0) text = line + skip;
  std::fclose(file);
  return text;
}

// Takes the number at the start of the text, after spaces, off it. −1 if there is none.
inline int64_t take_number(std::string& text) {
  int64_t value = -1;
  text.erase(0, text.find_first_not_of(' '));
  const char* const begin = text.data();  // not sscanf: its C++20 form needs glibc 2.38
  text.erase(0, static_cast<size_t>(std::from_chars(begin, begin + text.size(), value).ptr - begin));
  return value;
}

inline int64_t number_in(const char* path, const char* key = "") {
  std::string text = text_in(path, key);
  return take_number(text);
}

}  // namespace st_moe::cpu

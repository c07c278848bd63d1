// The door to libcurl. Its options are variadic, which Swift cannot call; each wrapper here fixes one argument type.
#pragma once
#include <curl/curl.h>

static inline CURLcode sp_curl_set_long(CURL *h, CURLoption o, long v) { return curl_easy_setopt(h, o, v); }
static inline CURLcode sp_curl_set_off(CURL *h, CURLoption o, curl_off_t v) { return curl_easy_setopt(h, o, v); }
static inline CURLcode sp_curl_set_string(CURL *h, CURLoption o, const char *v) { return curl_easy_setopt(h, o, v); }
static inline CURLcode sp_curl_set_pointer(CURL *h, CURLoption o, void *v) { return curl_easy_setopt(h, o, v); }
static inline CURLcode sp_curl_set_list(CURL *h, CURLoption o, struct curl_slist *v) { return curl_easy_setopt(h, o, v); }
// The bytes are copied by libcurl.
static inline CURLcode sp_curl_set_blob(CURL *h, CURLoption o, const void *data, size_t length) {
  struct curl_blob blob = {(void *)data, length, CURL_BLOB_COPY};
  return curl_easy_setopt(h, o, &blob);
}
typedef size_t (*sp_curl_io)(char *, size_t, size_t, void *);
static inline CURLcode sp_curl_set_io(CURL *h, CURLoption o, sp_curl_io f) { return curl_easy_setopt(h, o, f); }
typedef int (*sp_curl_seek)(void *, curl_off_t, int);
static inline CURLcode sp_curl_set_seek(CURL *h, sp_curl_seek f) { return curl_easy_setopt(h, CURLOPT_SEEKFUNCTION, f); }
static inline CURLcode sp_curl_get_long(CURL *h, CURLINFO i, long *v) { return curl_easy_getinfo(h, i, v); }
static inline CURLMcode sp_curl_multi_set_long(CURLM *m, CURLMoption o, long v) { return curl_multi_setopt(m, o, v); }

// Which addresses the server may fetch pictures from, and strict data: URIs.
#ifndef LV_CHAT_GUARD_H
#define LV_CHAT_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

#include "core/files.h"

// Whether an address is one of the public Internet: not of this machine, a private network, a
// cloud's metadata service or any other special use (the IANA registries for IPv4 and IPv6, RFC
// 6890). Looks into addresses that carry an IPv4 one: mapped ones and NAT64. 6to4 and Teredo,
// which lead elsewhere than they say, are refused.
bool guard_is_public(const struct sockaddr *address);

// lv_fetch_options.allow_address.
bool guard_allows(void *user, const struct sockaddr *address);

// The bytes of "data:TYPE;base64,DATA" in uri[n_bytes]. Only padded base64 of the standard alphabet
// is taken, without white space (RFC 4648, section 4). LV_EFORMAT; LV_ELIMIT beyond max_bytes.
lv_status data_uri_decode(const char *uri, size_t n_bytes, size_t max_bytes,
                          lv_buffer *out) LV_MUST_CHECK;

#endif

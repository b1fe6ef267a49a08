# cmake -DPAGES="a;b" -DFROM=FOLDER -DTO=FILE.c -P embed.cmake: the files as C arrays, each with its
# path below FROM, content type and strong ETag.
set(types
  html "text/html\\; charset=utf-8" css "text/css\\; charset=utf-8" js "text/javascript\\; charset=utf-8"
  mjs "text/javascript\\; charset=utf-8" json "application/json" webmanifest "application/manifest+json"
  svg "image/svg+xml" png "image/png" jpg "image/jpeg" jpeg "image/jpeg" webp "image/webp"
  ico "image/x-icon" woff2 "font/woff2" txt "text/plain\\; charset=utf-8" md "text/plain\\; charset=utf-8")
set(arrays "")
set(rows "")
set(n 0)
foreach(page IN LISTS PAGES)
  string(REGEX REPLACE ".*\\." "" extension "${page}")
  list(FIND types "${extension}" at)
  set(type "text/plain; charset=utf-8") # licences without an extension
  if(at GREATER -1)
    math(EXPR at "${at} + 1")
    list(GET types ${at} type)
  endif()
  file(SHA256 "${FROM}/${page}" hash)
  string(SUBSTRING ${hash} 0 32 hash)
  file(READ "${FROM}/${page}" hex HEX)
  string(LENGTH "${hex}" n_bytes)
  math(EXPR n_bytes "${n_bytes} / 2")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," hex "${hex}")
  string(APPEND arrays "static const unsigned char page_${n}[] = {${hex}0};\n")
  string(APPEND rows "    {\"${page}\", \"${type}\", \"\\\"${hash}\\\"\", page_${n}, ${n_bytes}},\n")
  math(EXPR n "${n} + 1")
endforeach()
file(WRITE "${TO}" "#include \"apps/image_chat/pages.h\"\n\n${arrays}
const page pages[] = {\n${rows}};\nconst int n_pages = ${n};\n")

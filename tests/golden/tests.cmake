# Our stages against the references' stored outputs. tiny.py writes the checkpoints first (a fixture).
find_package(Python3 3.9 COMPONENTS Interpreter)
if(NOT Python3_FOUND)
  message(WARNING "no Python 3.9: the golden tests, whose checkpoints a script writes, are left out")
  return()
endif()

set(golden_dir ${CMAKE_BINARY_DIR}/golden)
add_test(NAME golden_checkpoints
  COMMAND ${Python3_EXECUTABLE} -B ${CMAKE_CURRENT_SOURCE_DIR}/golden/tiny.py ${golden_dir})
set_tests_properties(golden_checkpoints PROPERTIES LABELS golden FIXTURES_SETUP golden)

foreach(program stages answers demo rope tokens sampling)
  add_executable(golden_${program} golden/${program}.c)
  target_link_libraries(golden_${program} PRIVATE lv_pipeline)
  target_include_directories(golden_${program} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  target_compile_definitions(golden_${program} PRIVATE
    LV_SOURCE_DIR="${PROJECT_SOURCE_DIR}" LV_SHARED_DIR="${PROJECT_SOURCE_DIR}/../shared")
  set_target_properties(golden_${program} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
endforeach()

# golden_test(name program arguments...)
function(golden_test name program)
  add_test(NAME golden_${name} COMMAND golden_${program} ${ARGN})
  set_tests_properties(golden_${name} PROPERTIES
    LABELS golden SKIP_RETURN_CODE 77 TIMEOUT 300 FIXTURES_REQUIRED golden)
endfunction()

foreach(case hf15 hf15_pad hf15_full hf16 hf16_mistral orig15 orig16 awq64 awq128)
  foreach(backend cpu ref)
    golden_test(${case}_${backend} stages ${case} ${golden_dir}/${case} ${backend})
  endforeach()
endforeach()
foreach(case hf15 hf16) # the same tensors under other names, the same answers
  foreach(naming 4.52 5.6)
    golden_test(${case}_names_${naming} stages ${case} ${golden_dir}/${case}_names_${naming} cpu odd)
  endforeach()
endforeach()
foreach(case hf15 hf15_pad hf16) # JSON files as transformers 5 writes them
  golden_test(${case}_saved stages ${case} ${golden_dir}/${case}_saved cpu odd)
endforeach()
golden_test(rope_yarn_saved rope rope_yarn ${golden_dir}/rope_yarn_saved cpu)
foreach(case hf15 hf16 hf16_mistral orig15 orig16)
  golden_test(${case}_answers answers ${case} ${golden_dir}/${case})
endforeach()
foreach(case rope_linear rope_dynamic rope_yarn rope_yarn_own rope_llama3 window)
  foreach(backend cpu ref)
    golden_test(${case}_${backend} rope ${case} ${golden_dir}/${case} ${backend})
  endforeach()
endforeach()
golden_test(demo demo)
golden_test(tokens_hf tokens small ${golden_dir}/hf15)
golden_test(tokens_original tokens small ${golden_dir}/orig15)
golden_test(tokens_llama tokens llama)
golden_test(sampling_cpu sampling cpu)
golden_test(sampling_ref sampling ref)

# Each lesser instruction set of the CPU backend; one that this CPU lacks is skipped.
foreach(isa portable avx2 avx512)
  foreach(case hf15 hf16 awq64)
    golden_test(${case}_${isa} stages ${case} ${golden_dir}/${case} cpu odd wide)
    set_tests_properties(golden_${case}_${isa} PROPERTIES ENVIRONMENT LV_CPU_ISA=${isa})
  endforeach()
endforeach()

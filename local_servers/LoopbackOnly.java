import java.lang.classfile.ClassFile;
import java.lang.classfile.ClassTransform;
import java.lang.classfile.CodeBuilder;
import java.lang.classfile.CodeElement;
import java.lang.classfile.CodeTransform;
import java.lang.constant.ClassDesc;
import java.lang.constant.ConstantDescs;
import java.lang.constant.MethodTypeDesc;
import java.lang.instrument.ClassFileTransformer;
import java.lang.instrument.Instrumentation;
import java.security.ProtectionDomain;

/**
 * Makes each socket that would listen on all interfaces listen on the loopback interface.
 *
 * RocketMQ's gRPC proxy, and its port for replicas, have no setting for it.
 */
public final class LoopbackOnly implements ClassFileTransformer {
    private static final ClassDesc ADDRESS = ClassDesc.of("java.net.InetAddress");
    private static final int ADDRESS_ARGUMENT = 2;

    public static void premain(String arguments, Instrumentation instrumentation) throws Exception {
        instrumentation.addTransformer(new LoopbackOnly(), true);
        instrumentation.retransformClasses(Class.forName("sun.nio.ch.Net"));
    }

    @Override
    public byte[] transform(
            ClassLoader loader, String name, Class<?> type, ProtectionDomain domain, byte[] content) {
        if (!"sun/nio/ch/Net".equals(name)) {
            return null;
        }
        ClassFile file = ClassFile.of();
        return file.transformClass(file.parse(content), ClassTransform.transformingMethodBodies(
                method -> method.methodName().equalsString("bind") && method.methodTypeSymbol().parameterCount() == 4,
                new FirstChooseAddress()));
    }

    /** Puts `if (address.isAnyLocalAddress()) address = InetAddress.getLoopbackAddress();` first. */
    private static final class FirstChooseAddress implements CodeTransform {
        @Override
        public void atStart(CodeBuilder code) {
            code.aload(ADDRESS_ARGUMENT)
                    .invokevirtual(ADDRESS, "isAnyLocalAddress", MethodTypeDesc.of(ConstantDescs.CD_boolean))
                    .ifThen(any -> any
                            .invokestatic(ADDRESS, "getLoopbackAddress", MethodTypeDesc.of(ADDRESS))
                            .astore(ADDRESS_ARGUMENT));
        }

        @Override
        public void accept(CodeBuilder code, CodeElement element) {
            code.with(element);
        }
    }
}

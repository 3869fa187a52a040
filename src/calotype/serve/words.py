"""The terms of the page, each explained in a sentence, in English and Vietnamese."""

TERMS: dict[str, tuple[str, str]] = {
    "latent diffusion": (
        "A diffusion model that works on the small codes (latents) of an autoencoder instead of on pixels.",
        "Mô hình khuếch tán làm việc trên mã thu nhỏ (biến ẩn) của bộ mã hoá tự động thay vì trên điểm ảnh.",
    ),
    "autoencoder": (
        "Two networks: one makes a small code of a picture, the other makes the picture again from the code.",
        "Hai mạng: một mạng nén ảnh thành mã nhỏ, mạng kia dựng lại ảnh từ mã đó.",
    ),
    "latents": (
        "The codes of an autoencoder: a small picture with more channels than red, green and blue.",
        "Mã của bộ mã hoá tự động: một ảnh nhỏ có nhiều kênh hơn đỏ, lục và lam.",
    ),
    "denoiser": (
        "The network that estimates the clean picture from a noisy one; sampling applies it again and again.",
        "Mạng ước lượng ảnh sạch từ ảnh nhiễu; khi lấy mẫu nó được áp dụng nhiều lần.",
    ),
    "sigma": (
        "How strong the noise is: the standard deviation of what was added to the picture.",
        "Độ mạnh của nhiễu: độ lệch chuẩn của phần nhiễu được cộng vào ảnh.",
    ),
    "prior": (
        "A denoiser known in closed form, a mixture of Gaussians fitted to the pictures; the network learns the rest.",
        "Bộ khử nhiễu có công thức đóng, một hỗn hợp Gauss khớp với các ảnh; mạng học phần còn lại.",
    ),
    "guidance": (
        "Pushes samples away from what a weaker model makes: clearer and closer to the label, but less varied.",
        "Đẩy mẫu ra xa kết quả của một mô hình yếu hơn: rõ và sát nhãn hơn, nhưng ít đa dạng hơn.",
    ),
    "seed": (
        "The number from which all noise is drawn: equal seeds give equal pictures.",
        "Con số mà từ đó mọi nhiễu được sinh ra: cùng hạt giống thì cùng ảnh.",
    ),
    "steps": (
        "How often the denoiser is applied to make a picture; more steps take longer and are a little better.",
        "Số lần áp dụng bộ khử nhiễu để tạo một ảnh; nhiều bước hơn thì lâu hơn và tốt hơn một chút.",
    ),
    "label": (
        "The class of a picture: the name of the folder in which it was.",
        "Lớp của ảnh: tên thư mục chứa ảnh.",
    ),
    "prompt": (
        "What the picture should show, in words; only models that were trained with captions read prompts.",
        "Điều bức ảnh cần thể hiện, bằng lời; chỉ mô hình được huấn luyện với chú thích mới đọc được.",
    ),
    "held out": (
        "Pictures that are not trained on, so that they can show whether the model has learned or memorised.",
        "Các ảnh không dùng để huấn luyện, để thấy mô hình đã học hay chỉ học thuộc lòng.",
    ),
    "held-out loss": (
        "The error of the denoiser on pictures that it was not trained on. Lower is better.",
        "Sai số của bộ khử nhiễu trên các ảnh không dùng để huấn luyện. Càng thấp càng tốt.",
    ),
    "PSNR": (
        "How close reconstructions are to their originals, in decibels; 30 dB is hard to tell apart.",
        "Ảnh dựng lại gần với ảnh gốc đến mức nào, tính bằng decibel; 30 dB thì khó phân biệt.",
    ),
    "FD-Lite0": (
        "Distance between the features of samples and of real pictures, as FID. Lower is better, at equal n.",
        "Khoảng cách giữa đặc trưng của ảnh mẫu và ảnh thật, như FID. Càng thấp càng tốt, với cùng n.",
    ),
    "kernel distance": (
        "Another distance between features of samples and of real pictures, on average the same at any n. Lower is "
        "better.",
        "Một khoảng cách khác giữa đặc trưng ảnh mẫu và ảnh thật, trung bình như nhau với mọi n. Càng thấp càng tốt.",
    ),
    "precision": (
        "In the evaluation: the share of samples that lie among the real pictures; higher is better. In the plan: the "
        "format of the numbers that training computes with.",
        "Trong phần đánh giá: tỉ lệ ảnh mẫu nằm giữa các ảnh thật; càng cao càng tốt. Trong kế hoạch: định dạng số "
        "dùng để tính toán khi huấn luyện.",
    ),
    "recall": (
        "The share of real pictures that lie among the samples: how varied they are. Higher is better.",
        "Tỉ lệ ảnh thật nằm giữa các ảnh mẫu: ảnh mẫu đa dạng đến mức nào. Càng cao càng tốt.",
    ),
    "density": (
        "In how many neighbourhoods of real pictures a sample lies, over the number that is expected; good ones have "
        "about 1 or more.",
        "Ảnh mẫu nằm trong vùng lân cận của bao nhiêu ảnh thật, chia cho số mong đợi; ảnh mẫu tốt có khoảng 1 hoặc "
        "hơn.",
    ),
    "coverage": (
        "The share of real pictures that have a sample as near as their real neighbours are. Higher is better.",
        "Tỉ lệ ảnh thật có ít nhất một ảnh mẫu ở gần nó không kém các ảnh thật lân cận. Càng cao càng tốt.",
    ),
    "SSIM": (
        "How alike the structure of reconstructions and originals is, from 0 to 1. Higher is better.",
        "Cấu trúc của ảnh dựng lại giống ảnh gốc đến mức nào, từ 0 đến 1. Càng cao càng tốt.",
    ),
    "prompt alignment": (
        "Whether captions fit their own pictures best; for the portraits, also whether samples show what their prompts "
        "ask for.",
        "Chú thích có khớp nhất với ảnh của chính nó hay không; với tập ảnh chân dung, còn cả việc ảnh mẫu có thể hiện "
        "đúng điều lời nhắc yêu cầu hay không.",
    ),
    "schedule": (
        "How a value changes on the way: the learning rate in training, or sigma from step to step of a sampler.",
        "Cách một giá trị thay đổi dọc đường: tốc độ học khi huấn luyện, hoặc sigma qua từng bước lấy mẫu.",
    ),
    "dropout": (
        "In training, parts of the network are switched off at random, so that it memorises less.",
        "Khi huấn luyện, một số phần của mạng bị tắt ngẫu nhiên để mạng ít học thuộc lòng hơn.",
    ),
    "interval": (
        "A range around a measured value, which holds the true value in 95 of 100 repetitions of the measurement.",
        "Khoảng quanh giá trị đo được, chứa giá trị thật trong 95 trên 100 lần đo lặp lại.",
    ),
    "floor": (
        "The same measure of other real pictures: the value that perfect samples would have.",
        "Cùng phép đo trên các ảnh thật khác: giá trị mà ảnh mẫu hoàn hảo sẽ đạt.",
    ),
    "ceiling": (
        "The same measure of noise, or of an autoencoder before training: the value of a model that knows nothing.",
        "Cùng phép đo trên nhiễu, hoặc trên bộ mã hoá tự động chưa huấn luyện: giá trị của mô hình chưa biết gì.",
    ),
    "images seen": (
        "How many pictures training has looked at, repeats counted.",
        "Số ảnh mà quá trình huấn luyện đã xem, tính cả lặp lại.",
    ),
    "gradient norm": (
        "How strongly a step wants to change the network; a sudden rise is a sign of trouble.",
        "Mức độ một bước muốn thay đổi mạng; tăng đột ngột là dấu hiệu trục trặc.",
    ),
    "image-to-image": (
        "Noise is added to a picture and removed again: a variation, nearer to it the lower the strength is.",
        "Thêm nhiễu vào ảnh rồi khử đi: một biến thể, càng gần ảnh gốc khi cường độ càng thấp.",
    ),
    "strength": (
        "The share of the sampler's steps in a variation: near 0 little changes, at 1 the picture is forgotten.",
        "Tỉ lệ số bước lấy mẫu của một biến thể: gần 0 thì ít thay đổi, bằng 1 thì ảnh gốc bị quên.",
    ),
    "inpainting": (
        "Only what the brush has marked is made anew; the rest of the picture stays as it is.",
        "Chỉ phần được tô mới được vẽ lại; phần còn lại của ảnh giữ nguyên.",
    ),
    "interpolation": (
        "Pictures on the way from the noise of one seed to that of another.",
        "Các ảnh trên đường đi từ nhiễu của hạt giống này đến hạt giống khác.",
    ),
    "memorisation": (
        "A sample that is a copy of a training picture instead of something new.",
        "Ảnh mẫu là bản sao của một ảnh huấn luyện thay vì một ảnh mới.",
    ),
    "nearest training picture": (
        "The most similar picture of those the model was trained on: it shows whether a sample is new or a copy. "
        "Pictures of earlier trainings are not searched.",
        "Ảnh giống nhất trong số ảnh huấn luyện: cho thấy ảnh mẫu là mới hay là bản sao. Ảnh của những lần huấn luyện "
        "trước không được tìm.",
    ),
    "overfits": (
        "The model gets better on its training pictures and worse on all others.",
        "Mô hình tốt lên trên ảnh huấn luyện nhưng kém đi trên mọi ảnh khác.",
    ),
    "checkpoint": (
        "All that is needed to go on with a run, saved every now and then.",
        "Mọi thứ cần để tiếp tục một lần chạy, được lưu định kỳ.",
    ),
    "EMA": (
        "An average of the network's weights over the last steps; samples are made from it.",
        "Trung bình trọng số của mạng qua các bước gần đây; ảnh mẫu được tạo từ đó.",
    ),
    "cascade": (
        "Several models in pixels: the first makes small pictures, the next ones enlarge them.",
        "Nhiều mô hình trên điểm ảnh: mô hình đầu tạo ảnh nhỏ, các mô hình sau phóng to.",
    ),
    "train further": (
        "The networks of a finished run are trained for more time, with the same pictures held out.",
        "Các mạng của một lần chạy đã xong được huấn luyện thêm thời gian, với cùng các ảnh được để riêng.",
    ),
    "budget": (
        "The time that the whole training may take; the plan chooses networks and steps for it.",
        "Thời gian cho toàn bộ quá trình huấn luyện; kế hoạch chọn mạng và số bước theo đó.",
    ),
    "DiT": (
        "A diffusion transformer: a network that divides its input into patches and relates all of them to each other.",
        "Diffusion transformer: mạng chia đầu vào thành các mảnh rồi liên hệ mọi mảnh với nhau.",
    ),
    "UNet": (
        "A convolutional network that makes its input smaller step by step and then larger again, with shortcuts from "
        "one side to the other.",
        "Mạng tích chập thu nhỏ đầu vào từng bước rồi phóng to trở lại, có đường nối tắt giữa các tầng cùng cỡ.",
    ),
    "attention": (
        "A layer in which every part of a picture can take up information from every other part.",
        "Cơ chế chú ý: lớp mạng mà ở đó mỗi phần của ảnh có thể nhận thông tin từ mọi phần khác.",
    ),
    "patch": (
        "A small square of a picture or of its latents that a network handles as one; large ones are fast and coarse.",
        "Mảnh: một ô vuông nhỏ của ảnh hoặc của biến ẩn mà mạng xử lý như một đơn vị; mảnh lớn thì nhanh hơn nhưng thô "
        "hơn.",
    ),
    "crop": (
        "A part that is cut out of a picture; training on crops is faster, and more varied where pictures are few.",
        "Phần ảnh được cắt ra; huấn luyện trên các phần này nhanh hơn, và đa dạng hơn khi có ít ảnh.",
    ),
    "mirrored": (
        "Pictures are flipped left to right at random in training, where that shows nothing impossible.",
        "Khi huấn luyện, ảnh được lật trái phải ngẫu nhiên, nếu ảnh lật vẫn hợp lý.",
    ),
    "Gaussian": (
        "A bell-shaped distribution, given by its mean and its covariance.",
        "Phân phối Gauss (phân phối chuẩn): có hình chuông, xác định bởi trung bình và hiệp phương sai.",
    ),
    "mixture": (
        "Several Gaussians, each with a weight, that together describe how the pictures are distributed.",
        "Hỗn hợp: nhiều phân phối Gauss, mỗi phân phối một trọng số, cùng mô tả phân phối của các ảnh.",
    ),
    "closed form": (
        "Computed by a formula from the pictures, without steps of training.",
        "Dạng đóng: được tính bằng công thức từ các ảnh, không cần các bước huấn luyện.",
    ),
    "rectified flow": (
        "The straight path from a picture to noise, along which the share of noise grows evenly; the denoiser learns "
        "the way back.",
        "Đường thẳng đi từ ảnh đến nhiễu, trên đó tỉ lệ nhiễu tăng đều; bộ khử nhiễu học đường đi ngược lại.",
    ),
    "text encoder": (
        "The network that turns a caption or a prompt into numbers for the denoiser.",
        "Bộ mã hoá văn bản: mạng biến chú thích hoặc lời nhắc thành các con số cho bộ khử nhiễu.",
    ),
    "negative prompt": (
        "What the picture should not show, in words; it has an effect only if the guidance scale is above 1.",
        "Điều bức ảnh không nên có, bằng lời; chỉ có tác dụng khi hệ số dẫn hướng lớn hơn 1.",
    ),
    "stage that enlarges": (
        "A model of a cascade that makes a larger picture from a small one (super-resolution).",
        "Mô hình của hệ thống nối tầng tạo ảnh lớn hơn từ ảnh nhỏ (siêu phân giải).",
    ),
    "exposure fine-tuning": (
        "A last part of training on pictures that the stage below has redrawn, so that its mistakes are known.",
        "Tinh chỉnh trong giai đoạn cuối trên những ảnh do tầng trước vẽ lại, để quen với các lỗi của tầng đó.",
    ),
    "sharding": (
        "Several processes divide the weights of a network among them, so that each needs less memory.",
        "Nhiều tiến trình chia nhau các trọng số của mạng, nên mỗi tiến trình cần ít bộ nhớ hơn.",
    ),
    "denoising loss": (
        "The error of the denoiser on noisy training pictures. Lower is better.",
        "Mất mát khử nhiễu: sai số của bộ khử nhiễu trên các ảnh huấn luyện bị nhiễu. Càng thấp càng tốt.",
    ),
    "training loss": (
        "The error on pictures that the model is trained on, with the noise of the held-out loss.",
        "Mất mát huấn luyện: sai số trên các ảnh dùng để huấn luyện, với cùng nhiễu như khi đo trên ảnh để riêng.",
    ),
    "L1": (
        "The mean absolute difference between a reconstruction and its original. Lower is better.",
        "Trung bình trị tuyệt đối của hiệu giữa ảnh dựng lại và ảnh gốc. Càng thấp càng tốt.",
    ),
    "edge loss": (
        "The L1 distance between the gradients of a reconstruction and of its original: edges count, not only areas.",
        "Khoảng cách L1 giữa gradient của ảnh dựng lại và của ảnh gốc: tính cả đường biên, không chỉ các mảng màu.",
    ),
    "perceptual distance": (
        "How far a reconstruction is from its original by the features of a network that was trained on photographs.",
        "Khoảng cách cảm nhận: ảnh dựng lại cách ảnh gốc bao xa theo đặc trưng của một mạng đã học từ ảnh chụp.",
    ),
    "KL": (
        "The Kullback-Leibler divergence: how far the latents are from standard Gaussian noise.",
        "Phân kỳ Kullback-Leibler: phân phối của biến ẩn cách phân phối Gauss chuẩn bao xa.",
    ),
    "critic": (
        "A network that learns to tell reconstructions from real pictures, so that the autoencoder makes sharper ones.",
        "Bộ phân biệt: mạng học cách phân biệt ảnh dựng lại với ảnh thật, nhờ đó bộ mã hoá tự động cho ảnh nét hơn.",
    ),
    "adversarial loss": (
        "The part of the autoencoder's loss that is lower the more its reconstructions look real to the critic.",
        "Mất mát đối kháng: phần mất mát của bộ mã hoá tự động, càng thấp khi bộ phân biệt càng coi ảnh dựng lại là "
        "thật.",
    ),
    "hinge loss": (
        "The loss of the critic: 0 where it scores every real picture above 1 and every reconstruction below -1.",
        "Mất mát bản lề của bộ phân biệt: bằng 0 khi nó chấm mọi ảnh thật trên 1 và mọi ảnh dựng lại dưới -1.",
    ),
    "accuracy of the critic": (
        "The share of pictures that the critic classifies correctly as real or reconstructed; chance is 0.5.",
        "Tỉ lệ ảnh mà bộ phân biệt nhận đúng là ảnh thật hay ảnh dựng lại; đoán ngẫu nhiên được 0,5.",
    ),
    "gap of the critic": (
        "The critic's mean score of real pictures minus that of reconstructions; near 0 it cannot tell them apart.",
        "Điểm trung bình bộ phân biệt cho ảnh thật trừ điểm cho ảnh dựng lại; gần 0 thì nó không phân biệt được.",
    ),
    "validation": (
        "Held-out pictures by which the end of training and the settings of sampling are chosen; test pictures are "
        "kept for the end.",
        "Dùng các ảnh để riêng để chọn lúc dừng huấn luyện và cách lấy mẫu; ảnh kiểm tra được giữ đến cuối.",
    ),
    "raw weights": (
        "The weights of a network as its last step has left them, not averaged over steps as in the EMA.",
        "Trọng số của mạng ngay sau bước cuối, không lấy trung bình qua các bước như EMA.",
    ),
}  # fmt: skip

NAMES = {
    "flow": "rectified flow", "text": "text encoder", "stages": "cascade", "enlarge": "stage that enlarges",
    "exposure": "exposure fine-tuning", "loss": "denoising loss", "training": "training loss",
    "held out, raw": "raw weights", "edges": "edge loss", "perceptual": "perceptual distance",
    "adversarial": "adversarial loss", "hinge": "hinge loss", "right": "accuracy of the critic",
    "gap": "gap of the critic",
}  # fmt: skip
"""Terms by the names of settings in a plan and of curves: in a sentence these are other words. Sizes are left out."""
